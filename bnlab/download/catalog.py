"""Where each data set comes from, and whether its files are there: names, sizes, checksums, licences.

Archives, checksums and mirrors are those that torchvision publishes in its classes. They are repeated here because
importing torchvision takes seconds that a listing or an error message should not; a test holds both equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bnlab.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class File:
    """A file as torchvision reads it: its path under the root, its size in bytes and its MD5, as far as published."""

    path: str
    size: int | None
    md5: str | None = None

    def fault(self, root: Path) -> str | None:
        """Return what is wrong with the file at a glance, by its size, or None."""
        path = root / self.path
        if not path.is_file():
            return "missing"
        size = path.stat().st_size
        if size == 0 or (self.size is not None and size != self.size):
            return f"{size:,} bytes" + (f", expected {self.size:,}" if self.size is not None else "")
        return None


@dataclass(frozen=True)
class Archive:
    """A file to download, and the files in it; `folder`, under the root, is where torchvision keeps both."""

    name: str
    size: int
    md5: str
    folder: str
    files: tuple[File, ...]

    def path(self, root: Path) -> Path:
        """Return where the archive lies."""
        return root / self.folder / self.name


@dataclass(frozen=True)
class Source:
    """A data set in one line each; without archives there is nothing to download."""

    origin: str
    licence: str
    images: str
    shape: str
    classes: int | None
    mirrors: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()

    @property
    def files(self) -> tuple[File, ...]:
        """Return every file that must be there."""
        return tuple(file for archive in self.archives for file in archive.files)


@dataclass(frozen=True)
class Status:
    """One line of `bnlab data list`; `faults` are (path, what is wrong), judged by size alone."""

    name: str
    state: Literal["present", "missing", "damaged", "yours"]
    faults: tuple[tuple[str, str], ...]
    bytes_on_disk: int
    source: Source


def status(name: str, root: str | Path) -> Status:
    """Return what of a data set lies under `root`. Errors: ConfigError if there is no such data set."""
    source = source_of(name)
    if not source.archives:
        return Status(name, "yours" if name == "folder" else "present", (), 0, source)
    base = Path(root)
    faults = tuple((file.path, fault) for file in source.files if (fault := file.fault(base)))
    kept = [base / file.path for file in source.files] + [archive.path(base) for archive in source.archives]
    on_disk = sum(path.stat().st_size for path in kept if path.is_file())
    broken = any(fault != "missing" for _, fault in faults)
    return Status(name, "damaged" if broken else "missing" if faults else "present", faults, on_disk, source)


def require(name: str, root: str | Path) -> None:
    """Check by their sizes that all files are there. Errors: DataError naming what is missing or damaged."""
    found = status(name, root)
    if found.state == "present":
        return
    advice = f"get it with `bnlab data fetch {name} --root {root}`, or use data=digits, which needs no download"
    if found.state == "damaged":
        path, fault = next(pair for pair in found.faults if pair[1] != "missing")
        raise DataError(f"{name}: file {Path(root) / path}: {fault}\n{advice}")
    path = found.faults[0][0]
    archive = next(a for a in found.source.archives if path in [file.path for file in a.files])
    raise DataError(
        f"{name}: not in {root}: {path}, from {archive.name} ({archive.size:,} bytes, MD5 {archive.md5})\n{advice}"
    )


def damaged_by_checksum(name: str, root: str | Path) -> list[str]:
    """Return the paths of files whose published MD5 differs; reads them whole."""
    base = Path(root)
    return [file.path for file in source_of(name).files if file.md5 and md5_of(base / file.path) != file.md5]


def md5_of(path: Path) -> str:
    """Return the MD5 of a file in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def source_of(name: str) -> Source:
    """Return the source of a data set. Errors: ConfigError if there is no such data set."""
    if name not in SOURCES:
        raise ConfigError(_unknown(name, list(SOURCES)))
    return SOURCES[name]


def downloadable(name: str) -> Source:
    """Return the source of a data set to download. Errors: ConfigError if there is nothing under that name."""
    if name not in SOURCES:
        raise ConfigError(_unknown(name, [known for known, source in SOURCES.items() if source.archives]))
    if not SOURCES[name].archives:
        raise ConfigError(f"{name}: nothing to download: {SOURCES[name].origin}")
    return SOURCES[name]


def _unknown(name: str, known: Sequence[str]) -> str:
    return f"{name}: no such data set{did_you_mean(name, known)}\nthere are: {', '.join(known)}"


def _idx_archives(folder: str, *published: tuple[str, int, str, int]) -> tuple[Archive, ...]:
    return tuple(
        Archive(name, size, md5, folder, (File(f"{folder}/{name.removesuffix('.gz')}", unpacked),))
        for name, size, md5, unpacked in published
    )


SOURCES: dict[str, Source] = {
    "digits": Source("Alpaydin and Kaynak 1998, UCI; comes with scikit-learn", "CC BY 4.0", "1,437 + 360", "1x8x8", 10),
    "mnist": Source(
        "LeCun, Cortes and Burges 1998, yann.lecun.com/exdb/mnist",
        "CC BY-SA 3.0",
        "60,000 + 10,000",
        "1x28x28",
        10,
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        _idx_archives(
            "MNIST/raw",
            ("train-images-idx3-ubyte.gz", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873", 47_040_016),
            ("train-labels-idx1-ubyte.gz", 28_881, "d53e105ee54ea40749a09fcbcd1e9432", 60_008),
            ("t10k-images-idx3-ubyte.gz", 1_648_877, "9fb629c4189551a2d022fa330f9573f3", 7_840_016),
            ("t10k-labels-idx1-ubyte.gz", 4_542, "ec29112dd5afa0611ce80d1b7f02629c", 10_008),
        ),
    ),
    "fashion_mnist": Source(
        "Xiao, Rasul and Vollgraf 2017, github.com/zalandoresearch/fashion-mnist",
        "MIT",
        "60,000 + 10,000",
        "1x28x28",
        10,
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        _idx_archives(
            "FashionMNIST/raw",
            ("train-images-idx3-ubyte.gz", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 47_040_016),
            ("train-labels-idx1-ubyte.gz", 29_515, "25c81989df183df01b3e8a0aad5dffbe", 60_008),
            ("t10k-images-idx3-ubyte.gz", 4_422_102, "bef4ecab320f06d8554ea6380940ec79", 7_840_016),
            ("t10k-labels-idx1-ubyte.gz", 5_148, "bb300cfdad3c16e7a12a480ee83cd310", 10_008),
        ),
    ),
    "cifar10": Source(
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
    ),
    "cifar100": Source(
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
    ),
    "folder": Source("your own images, data.path=...", "yours", "as found", "CxSxS", None),
}
