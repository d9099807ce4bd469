"""A folder of images, one folder a class: decoded once, held as tensors, cached as one file.

Either `path/train/<class>/*` with `path/test/<class>/*`, or `path/<class>/*`, from which a fixed, stratified share is
set apart for testing. Everything that is wrong with the images is found and named before training starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bnlab.data.bundle import Parts, Split, hold_out
from bnlab.data.decode import Pixels, decode_all, printable
from bnlab.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
NAMED = 10  # bad files named in a message, then a count
CACHE_VERSION = 1  # raised when the same files are decoded to other pixels


def read_folder(path: str, root: str, size: int, channels: int, test_share: float) -> Parts:
    """List, check and decode the images at `path`, or take them from the cache under `root`.

    Errors: DataError naming every file and folder that cannot be used.
    """
    try:
        listing = _list(Path(path))
    except OSError as error:
        raise DataError(f"data.path: cannot read {printable(str(error.filename))}: {error.strerror}") from error
    images = torch.from_numpy(_pixels(listing, Path(root) / "cache", size, channels))
    labels = torch.tensor([entry.label for entry in listing.entries])
    classes = tuple(printable(name) for name in listing.classes)
    if listing.num_test:
        border = len(labels) - listing.num_test
        return Parts(classes, Split(images[:border], labels[:border]), Split(images[border:], labels[border:]))
    train, test = hold_out(Split(images, labels), max(1, round(test_share * len(labels))))
    return Parts(classes, train, test)


def _pixels(listing: Listing, caches: Path, size: int, channels: int) -> Pixels:
    cache = caches / f"folder-{listing.key(f'{CACHE_VERSION}:{size}:{channels}')}.npz"
    cached = _read_cache(cache, (len(listing.entries), channels, size, size))
    if cached is not None:
        return cached
    pixels, faults = decode_all(
        listing.root,
        [entry.path for entry in listing.entries],
        size,
        channels,
        mean_bytes=sum(entry.size for entry in listing.entries) / len(listing.entries),
    )
    if faults:
        _refuse(listing.root, [f"{printable(path)}: {why}" for path, why in faults])
    _write_cache(cache, pixels)
    return pixels


@dataclass(frozen=True)
class Entry:
    """One image file; `path` is relative to the folder of images."""

    path: str
    label: int
    size: int
    modified: int


@dataclass(frozen=True)
class Listing:
    """The image files of a folder, in a fixed order; the last `num_test` of them lie in its test folder."""

    root: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    num_test: int

    def key(self, settings: str) -> str:
        """Return what identifies the pixels: names, sizes and times of the files, and how they are decoded."""
        digest = hashlib.sha256(settings.encode())
        for entry in self.entries:
            digest.update(b"\0%s\0%d\0%d\0" % (os.fsencode(entry.path), entry.size, entry.modified))
        return digest.hexdigest()[:16]


def _list(folder: Path) -> Listing:
    """Find classes and images. Errors: DataError naming everything that cannot be used."""
    if not folder.is_dir():
        raise DataError(f"data.path={printable(str(folder))}: no such folder")
    root = os.path.realpath(folder)
    faults: list[str] = []
    parts = [os.path.join(root, part) for part in ("train", "test")]
    there = [os.path.isdir(part) for part in parts]
    if any(there) and not all(there):
        raise DataError(f"data.path={printable(str(folder))}: has one of train and test, and not the other")
    if not all(there):
        parts = [root]
    classes = _class_names(parts[0], root, faults)
    for part in parts[1:]:
        others = _class_names(part, root, faults)
        faults += [f"test/{printable(name)}: no such class in train" for name in sorted(set(others) - set(classes))]
        faults += [f"test/{printable(name)}: missing" for name in sorted(set(classes) - set(others))]
    if len(classes) < 2:
        faults.append(f"{len(classes)} class folders in {printable(parts[0])}: at least 2 are needed")
    images = [
        _images(os.path.join(part, name), label, root, faults) for part in parts for label, name in enumerate(classes)
    ]
    if faults:
        _refuse(root, faults)
    num_test = sum(map(len, images[len(classes) :]))
    return Listing(root, tuple(classes), tuple(itertools.chain.from_iterable(images)), num_test)


def _class_names(part: str, root: str, faults: list[str]) -> list[str]:
    names = []
    for name in sorted(os.listdir(part)):
        path = os.path.join(part, name)
        if not name.startswith(".") and os.path.isdir(path):
            if _outside(path, root):
                faults.append(f"{printable(os.path.relpath(path, root))}: a link that leads out of the folder")
            else:
                names.append(name)
    return names


def _images(folder: str, label: int, root: str, faults: list[str]) -> list[Entry]:
    """Return the images that lie directly in a class folder; hidden files and other suffixes are passed over."""
    if not os.path.isdir(folder):
        return []  # a class that the test folder lacks, named already
    entries, usable = [], True
    with os.scandir(folder) as scan:
        files = sorted(scan, key=lambda file: file.name)
    for file in files:
        if file.name.startswith(".") or os.path.splitext(file.name)[1].lower() not in SUFFIXES:
            continue
        fault = _file_fault(file, root)
        if fault is not None:
            usable = False
            faults.append(f"{printable(os.path.relpath(file.path, root))}: {fault}")
            continue
        state = file.stat()
        entries.append(Entry(file.path[len(root) + 1 :], label, state.st_size, state.st_mtime_ns))
    if not entries and usable:
        faults.append(f"{printable(os.path.relpath(folder, root))}: no images in this class")
    return entries


def _file_fault(file: os.DirEntry[str], root: str) -> str | None:
    if file.is_symlink():
        if _outside(file.path, root):
            return "a link that leads out of the folder"
        return None if os.path.isfile(file.path) else "a link to nothing"
    return None if file.is_file() else "not a file"


def _outside(path: str, root: str) -> bool:
    real = os.path.realpath(path)
    return os.path.commonpath([real, root]) != root


def _refuse(root: str, faults: list[str]) -> None:
    shown = faults[:NAMED]
    more = [f"... and {len(faults) - NAMED:,} more"] if len(faults) > NAMED else []
    raise DataError(
        "\n".join(
            [f"folder: {printable(root)} cannot be used, faults found: {len(faults):,}; mend them:", *shown, *more]
        )
    )


def _read_cache(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Return the cached pixels, or None if there are none or they are damaged (a zip carries checksums)."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            images: Pixels = stored["images"]
    except Exception:  # none there, or damaged: then any part of the reader may be the one to complain
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _write_cache(path: Path, images: Pixels) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.savez(stream, images=images)
        temporary.replace(path)
    except OSError as error:  # the images are decoded; only the next run is slower
        logging.getLogger(__name__).warning("no cache of the images: cannot write %s: %s", path, error.strerror)
        with contextlib.suppress(OSError):
            temporary.unlink()
