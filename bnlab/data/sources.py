"""Where a data set comes from, and whether its files are there: names, sizes, checksums, licences."""

from __future__ import annotations

import hashlib
import os
import re
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
        """Return what is wrong with the file under `root`, or None; see `wrong`."""
        path = root / self.path
        return self.wrong(path) if path.is_file() else "missing"

    def wrong(self, path: Path) -> str | None:
        """Return what tells that these are other bytes than published, or None; files of the right size are read."""
        size = path.stat().st_size
        if size == 0 or (self.size is not None and size != self.size):
            return f"{size:,} bytes" + (f", expected {self.size:,}" if self.size is not None else "")
        if self.md5 and (md5 := md5_of(path)) != self.md5:
            return f"MD5 {md5}, expected {self.md5}"
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

    def require(self, name: str, root: Path) -> None:
        """Check that all files are there, as published. Errors: DataError naming what is missing, damaged or other."""
        there = self.status(root)
        if there.state == "present":
            return
        advice = (
            f"get it with `bnlab data fetch {name} --root {root}`, say with data.root=FOLDER where it is, or use "
            "data=digits, which needs no download"
        )
        if there.state == "damaged":
            path, fault = next(pair for pair in there.faults if pair[1] != "missing")
            raise DataError(f"{name}: file {root / path}: {fault}\n{advice}")
        path = there.faults[0][0]
        archive = next(a for a in self.archives if path in [file.path for file in a.files])
        hint = self._hint(name, root, archive)
        raise DataError(
            f"{name}: not in {root}: {path}, from {archive.name} ({archive.size:,} bytes, MD5 {archive.md5})\n"
            + (f"{hint}\n" if hint else "")
            + advice
        )

    def _hint(self, name: str, root: Path, archive: Archive) -> str | None:
        """Return what lies near `root` and may be what is looked for."""
        for above in (os.path.normpath(root / ".."), os.path.normpath(root / "../..")):
            if all((Path(above) / file.path).is_file() for file in self.files):
                return f"it lies in {above}: set data.root={above}"
        if archive.path(root).is_file():
            return (
                f"{archive.path(root)} is there: `bnlab data fetch {name} --root {root}` unpacks it, without a download"
            )
        for place in dict.fromkeys((root / archive.folder, root)):
            for file in archive.files:
                wanted = _plain(Path(file.path).name)
                for there in sorted(place.iterdir()) if place.is_dir() else ():
                    if _plain(there.name.removesuffix(".gz")) == wanted and not there.is_dir():
                        right = root / file.path
                        ending = ".gz" if there.name.endswith(".gz") else ""
                        return f"{there} is there: rename it to {right}{ending}"
        return None


@dataclass(frozen=True)
class Status:
    """What lies on disk of a data set; `faults` are (path, what is wrong)."""

    state: Literal["present", "missing", "damaged", "yours"]
    faults: tuple[tuple[str, str], ...]
    bytes_on_disk: int


def _plain(name: str) -> str:
    """Return a file's name without what downloads change: `train-images.idx3-ubyte`."""
    return re.sub(r"\W", "", name).lower()


def md5_of(path: Path) -> str:
    """Return the MD5 of a file in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
