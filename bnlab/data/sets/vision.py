"""The sets that torchvision reads, in torchvision's own layout of files; nothing is downloaded here.

Archives, checksums and mirrors are those that torchvision publishes in its classes. They are repeated here because
importing torchvision takes seconds that a listing or an error message should not; a test holds both equal.

Files are checked by size and MD5 before torchvision sees them: its complaints about damaged files are bare assertions,
and files of another set under the same names and of the same sizes are no complaint at all.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bnlab.data.dataset import DataSpec, datasets
from bnlab.data.sources import Archive, File, Source, md5_of
from bnlab.errors import DataError
from bnlab.schema import param

if TYPE_CHECKING:
    from bnlab.data.bundle import Parts, Split


@dataclass(frozen=True, kw_only=True)
class Torchvision(DataSpec):
    """Base of the sets with a reader in torchvision; its training and test images stay apart as published."""

    reader: ClassVar[str]

    valid_size: int = param(
        5000, "samples taken from the training images for validation, the same for every seed", low=0
    )

    def read(self) -> Parts:
        """Read the raw files. Errors: DataError naming the file that is missing or not as published, and what to do."""
        root = Path(os.path.expanduser(self.root))
        try:
            self.source.require(self.name, root)
        except DataError:
            self._refuse_another(root)
            raise
        import torchvision.datasets

        from bnlab.data.bundle import Parts

        reader = getattr(torchvision.datasets, self.reader)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's remarks on the age of CIFAR's pickles
                train, test = (reader(root, train=part, download=False) for part in (True, False))
            return Parts(tuple(train.classes), _split(train), _split(test))
        except Exception as error:  # torchvision raises whatever its parser happens to meet
            raise DataError(
                f"{self.name}: the files in {root} are damaged: {type(error).__name__}: {error}\n"
                f"remove them, and get them with `bnlab data fetch {self.name} --root {root}`"
            ) from error

    def _refuse_another(self, root: Path) -> None:
        """Raise the DataError that names the set whose files lie under the names of this one, if any do."""
        others = {
            file.md5: (name, file.path)
            for name in datasets
            if name != self.name
            for file in datasets[name].source.files
        }
        for file in self.source.files:
            path = root / file.path
            if path.is_file() and path.stat().st_size == file.size and (other := others.get(md5_of(path))):
                raise DataError(
                    f"{self.name}: {path} is a file of {other[0]}\n"
                    f"to use that, move it to {root / other[1]} and set data={other[0]}\n"
                    f"to get {self.name}, move it away, and `bnlab data fetch {self.name} --root {root}`"
                )


def _split(read: Any) -> Split:
    import torch

    from bnlab.data.bundle import Split

    images: torch.Tensor = torch.as_tensor(read.data)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return Split(images.contiguous(), torch.as_tensor(read.targets, dtype=torch.int64))


_IDX = {  # the files of MNIST and of what took its place, with the bytes that each unpacks to
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}


def _idx_archives(folder: str, *published: tuple[int, str, str]) -> tuple[Archive, ...]:
    """Return the archives of _IDX: size and MD5 of each, and the MD5 of what is in it."""
    return tuple(
        Archive(f"{name}.gz", size, md5, folder, (File(f"{folder}/{name}", unpacked, inside),))
        for (name, unpacked), (size, md5, inside) in zip(_IDX.items(), published, strict=True)
    )


@datasets.register("mnist")
@dataclass(frozen=True, kw_only=True)
class Mnist(Torchvision):
    """60,000 + 10,000 handwritten digits, 28x28 grey, 10 classes; a download of 12 MB."""

    reader = "MNIST"
    num_train = 60_000
    num_test = 10_000
    target = 0.98
    source = Source(
        "LeCun, Cortes and Burges 1998, yann.lecun.com/exdb/mnist",
        "CC BY-SA 3.0",
        "60,000 + 10,000",
        "1x28x28",
        10,
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        _idx_archives(
            "MNIST/raw",
            (9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
            (28_881, "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
            (1_648_877, "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
            (4_542, "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
        ),
    )


@datasets.register("fashion_mnist")
@dataclass(frozen=True, kw_only=True)
class FashionMnist(Torchvision):
    """60,000 + 10,000 articles of clothing, 28x28 grey, 10 classes; a download of 31 MB."""

    reader = "FashionMNIST"
    num_train = 60_000
    num_test = 10_000
    target = 0.88
    source = Source(
        "Xiao, Rasul and Vollgraf 2017, github.com/zalandoresearch/fashion-mnist",
        "MIT",
        "60,000 + 10,000",
        "1x28x28",
        10,
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        _idx_archives(
            "FashionMNIST/raw",
            (26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            (29_515, "25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
            (4_422_102, "bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
            (5_148, "bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
        ),
    )


@datasets.register("cifar10")
@dataclass(frozen=True, kw_only=True)
class Cifar10(Torchvision):
    """50,000 + 10,000 photographs, 32x32 colour, 10 classes; a download of 170 MB."""

    reader = "CIFAR10"
    num_train = 50_000
    num_test = 10_000
    target = 0.65
    source = Source(
        "Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html",
        "none stated; cite Krizhevsky 2009",
        "50,000 + 10,000",
        "3x32x32",
        10,
        ("https://www.cs.toronto.edu/~kriz/",),
        (
            Archive(
                "cifar-10-python.tar.gz",
                170_498_071,
                "c58f30108f718f92721af3b95e74349a",
                "",
                (
                    File("cifar-10-batches-py/data_batch_1", 31_035_704, "c99cafc152244af753f735de768cd75f"),
                    File("cifar-10-batches-py/data_batch_2", 31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
                    File("cifar-10-batches-py/data_batch_3", 31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
                    File("cifar-10-batches-py/data_batch_4", 31_035_696, "634d18415352ddfa80567beed471001a"),
                    File("cifar-10-batches-py/data_batch_5", 31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
                    File("cifar-10-batches-py/test_batch", 31_035_526, "40351d587109b95175f43aff81a1287e"),
                    File("cifar-10-batches-py/batches.meta", 158, "5ff9c542aee3614f3951f8cda6e48888"),
                ),
            ),
        ),
    )


@datasets.register("cifar100")
@dataclass(frozen=True, kw_only=True)
class Cifar100(Torchvision):
    """50,000 + 10,000 photographs, 32x32 colour, 100 classes; a download of 169 MB."""

    reader = "CIFAR100"
    num_train = 50_000
    num_test = 10_000
    target = 0.30
    source = Source(
        "Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html",
        "none stated; cite Krizhevsky 2009",
        "50,000 + 10,000",
        "3x32x32",
        100,
        ("https://www.cs.toronto.edu/~kriz/",),
        (
            Archive(
                "cifar-100-python.tar.gz",
                169_001_437,
                "eb9058c3a382ffc7106e4002c42a8d85",
                "",
                (
                    File("cifar-100-python/train", 155_249_918, "16019d7e3df5f24257cddd939b257f8d"),
                    File("cifar-100-python/test", None, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
                    File("cifar-100-python/meta", None, "7973b15100ade9c7d40fb424638fde48"),
                ),
            ),
        ),
    )
