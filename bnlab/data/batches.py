"""Batches by index from tensors that stay on the device: no workers, no per-image code, one transfer an epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from bnlab.data.augment import Augment
from bnlab.data.bundle import Split
from bnlab.distributed import shard
from bnlab.errors import ConfigError
from bnlab.seeding import generator


class Batches:
    """One split on one device; an epoch's order and augmentation depend on `seed` and its number alone.

    A batch is (images, labels): float32 of shape (B, C, H, W), int64 of shape (B,). Images are scaled to [0, 1] and,
    with `mean` and `std` of shape (C,), standardized by them. With `channels_last` the images are laid out as
    (N, H, W, C), so that a batch is in that memory format without a copy.
    Worker `rank` of `size` gets its consecutive part of each batch; order and augmentation are drawn for all of them.
    Errors: ConfigError if the augmentation does not fit the images, `last_batch="drop"` leaves no batch, or a batch has
    fewer samples than there are workers.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        last_batch: Literal["keep", "drop", "merge"] = "keep",
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        storage: Literal["float32", "uint8"] = "float32",
        augment: Augment | None = None,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.seed = seed
        self.device = torch.device(device)
        self.channels_last = channels_last
        self.augment = augment or Augment()
        self.sizes = batch_sizes(len(split), batch_size, last_batch, size)  # of whole batches, in order
        self._parts = [end - first for first, end in (shard(whole, rank, size) for whole in self.sizes)]
        self._mine = None if size == 1 else _positions(self.sizes, rank, size)
        self._plain = not self.augment.active
        # x * scale + offset, with black and white at 0 and 255
        channels = split.images.shape[1]
        mean = torch.zeros(channels) if mean is None else mean
        std = torch.ones(channels) if std is None else std
        layout = (channels,) if channels_last else (channels, 1, 1)
        self._scale = (1 / (255 * std)).view(layout).to(self.device)
        self._offset = (-mean / std).view(layout).to(self.device)
        images = self.augment.pad(split.images.to(self.device))
        # a clone: `contiguous` leaves the strides of a single channel as they are, and a convolution looks at them
        images = (images.permute(0, 2, 3, 1) if channels_last else images).clone(memory_format=torch.contiguous_format)
        self._images = self._normalized(images) if storage == "float32" else images
        self._labels = split.labels.to(self.device)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._labels)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.sizes)

    def epoch(self, index: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of epoch `index`, counted from 0, from its batch `start` on; every epoch is shuffled anew.

        The order is drawn on the CPU, so it is the same on every device.
        """
        order = torch.randperm(len(self), generator=generator(self.seed, "order", index))
        plan = torch.cat([order[None], self.augment.draw(len(self), self.seed, index)])
        plan = (plan[:, : sum(self.sizes)] if self._mine is None else plan[:, self._mine]).to(self.device)
        rows, drawn = plan[0].split_with_sizes(self._parts), plan[1:].split_with_sizes(self._parts, dim=1)
        labels = self._labels.index_select(0, plan[0]).split_with_sizes(self._parts)
        for step in range(start, self.steps_per_epoch):
            if self._plain:
                images = self._images.index_select(0, rows[step])
            else:
                images = self.augment.pick(self._images, rows[step], drawn[step], channels_last=self.channels_last)
            yield self._ready(images), labels[step]

    def sequential(self, batch_size: int, *, augmented: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every sample once in stored order, as evaluation sees it, or augmented as in epoch 0.

        The last batch may be short.
        """
        if augmented and self.augment.active:
            yield from self.in_order(torch.arange(len(self)), batch_size)
            return
        first = 1 if self.channels_last else 2
        images, margin = self._images, self.augment.margin
        for axis in (first, first + 1) if margin else ():
            images = images.narrow(axis, margin, images.shape[axis] - 2 * margin)
        for start in range(0, len(self), batch_size):  # lazily: a caller may want the first batch only
            chosen = slice(start, start + batch_size)
            yield self._ready(images[chosen].contiguous()), self._labels[chosen]

    def in_order(self, order: Tensor, batch_size: int, draw: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the samples `order`, int64 of shape (n,), in batches of that size, augmented as in epoch `draw`.

        What is drawn for a sample does not depend on where it stands.
        """
        drawn = self.augment.draw(len(self), self.seed, draw).to(self.device)
        for rows in order.to(self.device).split(batch_size):
            if self._plain:
                images = self._images.index_select(0, rows)
            else:
                images = self.augment.pick(self._images, rows, drawn[:, rows], channels_last=self.channels_last)
            yield self._ready(images), self._labels.index_select(0, rows)

    def _ready(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = self._normalized(images)
        return images.permute(0, 3, 1, 2) if self.channels_last else images

    def _normalized(self, images: Tensor) -> Tensor:
        return images.float().mul_(self._scale).add_(self._offset)


def batch_sizes(samples: int, batch_size: int, last_batch: str, workers: int = 1) -> list[int]:
    """Return the sizes of an epoch's batches, in order.

    Errors: ConfigError if `last_batch="drop"` leaves no batch, or a batch has fewer samples than there are workers.
    """
    full, rest = divmod(samples, batch_size)
    sizes = [batch_size] * full
    if last_batch == "drop" and not sizes:
        raise ConfigError(f"data.batch_size={batch_size}: with data.last_batch=drop, {samples:,} samples are no batch")
    if rest and last_batch == "merge" and sizes:
        sizes[-1] += rest
    elif rest and last_batch != "drop":
        sizes.append(rest)
    if batch_size < workers:
        raise ConfigError(f"data.batch_size={batch_size}: must be at least 1 sample for each of the {workers} workers")
    if sizes and sizes[-1] < workers:
        raise ConfigError(
            f"data.last_batch={last_batch}: the last batch has {sizes[-1]} samples for {workers} workers\n"
            "set data.last_batch=drop or data.last_batch=merge, or another data.batch_size"
        )
    return sizes


def _positions(sizes: Sequence[int], rank: int, size: int) -> Tensor:
    """Return where in an epoch's order the samples of one worker stand."""
    starts = itertools.accumulate(sizes, initial=0)
    spans = [(start, *shard(whole, rank, size)) for start, whole in zip(starts, sizes, strict=False)]
    return torch.cat([torch.arange(start + first, start + end) for start, first, end in spans])
