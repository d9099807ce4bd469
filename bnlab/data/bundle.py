"""What every data set is: common keys, and three splits of whole tensors that come out the same on every machine.

The official test images are never mixed with the others. Validation comes from the official training images and
depends on no run's seed, so that all arms of a comparison select on the same samples.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bnlab.data.augment import Augment
from bnlab.errors import ConfigError, DataError
from bnlab.registry import Registry
from bnlab.schema import param
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
    """What the files of a data set hold: class names, and the training and test images as published."""

    classes: tuple[str, ...]
    train: Split
    test: Split


@dataclass(frozen=True, eq=False)
class DataBundle:
    """A data set on the CPU, ready for `Batches`; `fingerprint` is a SHA-256 over everything in it."""

    name: str
    classes: tuple[str, ...]
    train: Split
    valid: Split
    test: Split
    fingerprint: str

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


@dataclass(frozen=True, kw_only=True)
class DataSpec(ABC):
    """The keys common to every data set; a subclass adds its own and reads the files."""

    name: ClassVar[str]
    num_train: ClassVar[int | None] = None  # official training images, where they are known before reading

    root: str = param("data", "folder that holds the data sets, relative to the working directory")
    train_size: int | None = param(None, "train on this many samples; a smaller subset lies in every larger one", low=1)
    valid_size: int = param(0, "samples taken from the training images for validation, the same for every seed", low=0)
    batch_size: int = param(64, "samples in a batch", low=1)
    last_batch: Literal["keep", "drop", "merge"] = param(
        "keep", "what becomes of a short last batch: merge joins it to the one before"
    )
    storage: Literal["float32", "uint8"] = param(
        "float32", "how images are held; uint8 takes a quarter, and is normalized in each batch"
    )
    shift: int = param(0, "move each image by up to this many pixels, filled with black", low=0)
    flip: bool = param(False, "mirror half of the images, left to right")
    crop: int = param(0, "move each image by up to this many pixels, filled with its reflection", low=0)

    def __post_init__(self) -> None:
        if self.shift and self.crop:
            raise ConfigError(
                f"data.shift={self.shift} and data.crop={self.crop}: both move the image, only the filling differs\n"
                "set one of them to 0"
            )
        if self.num_train is not None:
            self.check_sizes(self.num_train)

    @abstractmethod
    def read(self) -> Parts:
        """Read the files. Errors: DataError if they are missing or damaged."""

    @property
    def augment(self) -> Augment:
        """What is done to each training image anew in every epoch."""
        return Augment(shift=self.shift, flip=self.flip, crop=self.crop)

    def check_sizes(self, available: int) -> int:
        """Return how many of the `available` training images are trained on.

        Errors: ConfigError if the splits do not fit, or if `last_batch=drop` leaves no batch.
        """
        if self.valid_size >= available:
            raise ConfigError(
                f"data.valid_size={self.valid_size}: leaves nothing to train on\n"
                f"{self.name} has {available:,} training images: at most {available - 1:,}"
            )
        rest = available - self.valid_size
        if self.train_size is not None and self.train_size > rest:
            raise ConfigError(
                f"data.train_size={self.train_size}: at most {rest:,}, which is {available:,} training images "
                f"less data.valid_size={self.valid_size}"
            )
        count = rest if self.train_size is None else self.train_size
        if self.last_batch == "drop" and self.batch_size > count:
            raise ConfigError(
                f"data.batch_size={self.batch_size}: with data.last_batch=drop there is no batch\n"
                f"the training split has {count:,} images; use at most that, or data.last_batch=keep"
            )
        return count


datasets: Registry[DataSpec] = Registry("data")


def load(spec: DataSpec) -> DataBundle:
    """Read a data set and split it; nothing is kept in memory but the result.

    Training samples come from the front of one fixed, stratified order of the official training images and validation
    from its end: subsets are nested, and each holds the classes in their overall shares.
    Errors: DataError if files are missing or damaged, ConfigError if the sizes asked for do not fit.
    """
    parts = spec.read()
    available = len(parts.train)
    count = spec.check_sizes(available)
    spec.augment.check(*parts.train.images.shape[2:])
    for split in (parts.train, parts.test):
        if not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(parts.classes):
            raise DataError(f"{spec.name}: a label is outside 0 to {len(parts.classes) - 1}; the files are damaged")
    order = stratified_order(parts.train.labels)
    train = parts.train.take(order[:count])
    valid = parts.train.take(order[available - spec.valid_size :])
    digest = _fingerprint(parts.classes, train, valid, parts.test)
    return DataBundle(spec.name, parts.classes, train, valid, parts.test, digest)


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
    order = stratified_order(samples.labels)
    return samples.take(order[: len(samples) - count]), samples.take(order[len(samples) - count :])


def _fingerprint(classes: tuple[str, ...], *splits: Split) -> str:
    digest = hashlib.sha256("\0".join(classes).encode())
    for split in splits:
        digest.update(str(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return digest.hexdigest()
