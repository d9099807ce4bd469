"""A data set as it is trained on: three splits of whole tensors that come out the same on every machine.

The official test images are never mixed with the others. Validation comes from the official training images and
depends on no run's seed, so that all arms of a comparison select on the same samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bnlab.data.dataset import DataSpec
from bnlab.errors import DataError, count_of
from bnlab.seeding import generator

SPLIT_SEED = 0  # a constant: who is in validation is a property of the data set, not of a run


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 of shape (N, C, H, W), and labels, int64 of shape (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Split:
        """Return the samples at `rows`, int64 of shape (n,), in that order."""
        return Split(self.images.index_select(0, rows), self.labels.index_select(0, rows))


@dataclass(frozen=True, eq=False)
class Parts:
    """What the files of a data set hold: class names, and the training and test images as published.

    Of a user's own files also what was passed over, by reason, and what is odd about them, a sentence each.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split
    valid: Split | None = None  # None: a part of the training images
    passed_over: dict[str, int] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class DataBundle:
    """A data set on the CPU, ready for `Batches`; `fingerprint` is a SHA-256 over everything in it."""

    name: str
    classes: tuple[str, ...]
    train: Split
    valid: Split
    test: Split
    fingerprint: str
    about: Mapping[str, Any] = field(default_factory=dict)  # of a user's own files: what a run's record says of them

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.classes)

    @property
    def counts(self) -> str:
        """How many images there are of each split, of how many classes, and which classes the test split lacks."""
        sizes = [f"{len(split):,} {name}" for name, split in (("training", self.train), ("validation", self.valid))]
        there = set(self.test.labels.tolist())
        absent = [name for label, name in enumerate(self.classes) if label not in there]
        lacks = f", none of {', '.join(absent[:3])}{' and others' * (len(absent) > 3)} in test" if absent else ""
        return f"{', '.join(sizes)} and {len(self.test):,} test images of {count_of(self.num_classes, 'class')}{lacks}"

    @property
    def mean(self) -> Tensor:
        """Mean of the training split, shape (C,), with pixels in [0, 1]."""
        return self._moments[0]

    @property
    def std(self) -> Tensor:
        """Standard deviation of the training split, shape (C,), pixels in [0, 1]; 1 for a channel that is constant."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        # From histograms: integers, so exact and the same for every number of threads.
        values = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in self.train.images.unbind(1):
            share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
            mean = share @ values
            means.append(mean)
            stds.append((share @ (values - mean).square()).sqrt())
        std = torch.stack(stds)
        return torch.stack(means).float(), torch.where(std > 0, std, 1.0).float()


def load(spec: DataSpec) -> DataBundle:
    """Read a data set and split it; nothing is kept in memory but the result.

    Training samples come from the front of one fixed, stratified order of the official training images and validation
    from its end: subsets are nested, and each holds the classes in their overall shares.
    Errors: DataError if files are missing or damaged, ConfigError if the sizes asked for do not fit.
    """
    parts = spec.read()
    available = len(parts.train)
    if parts.valid is not None:
        spec = replace(spec, valid_size=0)
    count = spec.check_sizes(available)
    spec.augment.check(*parts.train.images.shape[2:])
    for split in (parts.train, parts.test, *([parts.valid] if parts.valid is not None else [])):
        if not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(parts.classes):
            raise DataError(f"{spec.name}: a label is outside 0 to {len(parts.classes) - 1}; the files are damaged")
    order = stratified_order(parts.train.labels)
    train = parts.train.take(order[:count])
    rest = parts.train.take(order[available - spec.valid_size :])
    valid = rest if parts.valid is None else parts.valid
    digest = _fingerprint(parts.classes, train, valid, parts.test)
    about: dict[str, Any] = {}
    if parts.passed_over is not None:
        unused = available - count - spec.valid_size
        about = {
            "classes": len(parts.classes),
            "images": {"train": count, "valid": len(valid), "test": len(parts.test)},
            "passed_over": parts.passed_over | ({"left by data.train_size": unused} if unused else {}),
            "warnings": list(parts.warnings),
        }
    return DataBundle(spec.name, parts.classes, train, valid, parts.test, digest, about)


def stratified_order(labels: Tensor) -> Tensor:
    """Return a fixed permutation of the samples in which any run from either end has the classes in equal shares.

    `labels` is int64 of shape (N,). The r-th of a class's n samples, in shuffled order, goes to place (r + 1/2) / n.
    """
    shuffled = torch.randperm(len(labels), generator=generator(SPLIT_SEED, "split"))
    of_class = labels[shuffled]
    counts = torch.bincount(of_class)
    grouped = torch.argsort(of_class, stable=True)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(grouped)
    rank[grouped] = torch.arange(len(labels)) - starts[of_class[grouped]]
    place = (rank.double() + 0.5) / counts[of_class]
    return shuffled[torch.argsort(place, stable=True)]


def hold_out(samples: Split, count: int) -> tuple[Split, Split]:
    """Split off `count` samples as a test split, for data sets that publish none: (training images, test images)."""
    train, test = hold_out_rows(samples.labels, count)
    return samples.take(train), samples.take(test)


def hold_out_rows(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the rows that `hold_out` keeps for training, and the `count` for testing."""
    order = stratified_order(labels)
    return order[: len(labels) - count], order[len(labels) - count :]


def _fingerprint(classes: tuple[str, ...], *splits: Split) -> str:
    digest = hashlib.sha256("\0".join(classes).encode())
    for split in splits:
        digest.update(str(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return digest.hexdigest()
