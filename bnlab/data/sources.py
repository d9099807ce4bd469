"""Where a data set comes from, and whether its files are there: names, sizes, checksums, licences."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bnlab.errors import DataError


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
    classes: int | None  # None: those of the user's own folder
    mirrors: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()

    @property
    def files(self) -> tuple[File, ...]:
        """Return every file that must be there."""
        return tuple(file for archive in self.archives for file in archive.files)

    def status(self, root: str | Path) -> Status:
        """Return what of the data set lies under `root`."""
        if not self.archives:
            return Status("yours" if self.classes is None else "present", (), 0)
        base = Path(root)
        faults = tuple((file.path, fault) for file in self.files if (fault := file.fault(base)))
        kept = [base / file.path for file in self.files] + [archive.path(base) for archive in self.archives]
        on_disk = sum(path.stat().st_size for path in kept if path.is_file())
        broken = any(fault != "missing" for _, fault in faults)
        return Status("damaged" if broken else "missing" if faults else "present", faults, on_disk)

    def require(self, name: str, root: str | Path) -> None:
        """Check by their sizes that all files are there. Errors: DataError naming what is missing or damaged."""
        there = self.status(root)
        if there.state == "present":
            return
        advice = f"get it with `bnlab data fetch {name} --root {root}`, or use data=digits, which needs no download"
        if there.state == "damaged":
            path, fault = next(pair for pair in there.faults if pair[1] != "missing")
            raise DataError(f"{name}: file {Path(root) / path}: {fault}\n{advice}")
        path = there.faults[0][0]
        archive = next(a for a in self.archives if path in [file.path for file in a.files])
        raise DataError(
            f"{name}: not in {root}: {path}, from {archive.name} ({archive.size:,} bytes, MD5 {archive.md5})\n{advice}"
        )

    def damaged_by_checksum(self, root: str | Path) -> list[str]:
        """Return the paths of files whose published MD5 differs; reads them whole."""
        base = Path(root)
        return [file.path for file in self.files if file.md5 and md5_of(base / file.path) != file.md5]


@dataclass(frozen=True)
class Status:
    """What lies on disk of a data set; `faults` are (path, what is wrong), judged by size alone."""

    state: Literal["present", "missing", "damaged", "yours"]
    faults: tuple[tuple[str, str], ...]
    bytes_on_disk: int


def md5_of(path: Path) -> str:
    """Return the MD5 of a file in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
