"""The sets that torchvision reads, in torchvision's own layout of files; nothing is downloaded here.

Files are checked by size before torchvision sees them, because its own complaints about damaged files are bare
assertions. torchvision is imported only when one of these sets is read: it takes longer than torch.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bnlab.data.bundle import DataSpec, Parts, Split, datasets
from bnlab.download.catalog import damaged_by_checksum, require
from bnlab.errors import DataError
from bnlab.schema import param


@dataclass(frozen=True, kw_only=True)
class Torchvision(DataSpec):
    """Base of the sets with a reader in torchvision; its training and test images stay apart as published."""

    reader: ClassVar[str]

    valid_size: int = param(
        5000, "samples taken from the training images for validation, the same for every seed", low=0
    )

    def read(self) -> Parts:
        """Read the raw files. Errors: DataError naming the file that is missing or damaged, and how to get it."""
        require(self.name, self.root)
        import torchvision.datasets

        reader = getattr(torchvision.datasets, self.reader)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's remarks on the age of CIFAR's pickles
                train, test = (reader(Path(self.root), train=part, download=False) for part in (True, False))
            return Parts(tuple(train.classes), _split(train), _split(test))
        except Exception as error:  # torchvision raises whatever its parser happens to meet
            wrong = damaged_by_checksum(self.name, self.root)
            what = f"MD5 differs: {', '.join(wrong)}" if wrong else f"{type(error).__name__}: {error}"
            raise DataError(
                f"{self.name}: the files in {self.root} are damaged: {what}\n"
                f"remove them, and get them with `bnlab data fetch {self.name} --root {self.root}`"
            ) from error


def _split(read: Any) -> Split:
    images: Tensor = torch.as_tensor(read.data)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return Split(images.contiguous(), torch.as_tensor(read.targets, dtype=torch.int64))


@datasets.register("mnist")
@dataclass(frozen=True, kw_only=True)
class Mnist(Torchvision):
    """60,000 + 10,000 handwritten digits, 28x28 grey, 10 classes; a download of 12 MB."""

    name: ClassVar[str] = "mnist"
    reader: ClassVar[str] = "MNIST"
    num_train: ClassVar[int | None] = 60_000


@datasets.register("fashion_mnist")
@dataclass(frozen=True, kw_only=True)
class FashionMnist(Torchvision):
    """60,000 + 10,000 articles of clothing, 28x28 grey, 10 classes; a download of 31 MB."""

    name: ClassVar[str] = "fashion_mnist"
    reader: ClassVar[str] = "FashionMNIST"
    num_train: ClassVar[int | None] = 60_000


@datasets.register("cifar10")
@dataclass(frozen=True, kw_only=True)
class Cifar10(Torchvision):
    """50,000 + 10,000 photographs, 32x32 colour, 10 classes; a download of 170 MB."""

    name: ClassVar[str] = "cifar10"
    reader: ClassVar[str] = "CIFAR10"
    num_train: ClassVar[int | None] = 50_000


@datasets.register("cifar100")
@dataclass(frozen=True, kw_only=True)
class Cifar100(Torchvision):
    """50,000 + 10,000 photographs, 32x32 colour, 100 classes; a download of 169 MB."""

    name: ClassVar[str] = "cifar100"
    reader: ClassVar[str] = "CIFAR100"
    num_train: ClassVar[int | None] = 50_000
