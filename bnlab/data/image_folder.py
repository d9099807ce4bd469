"""A folder of images, one folder a class: decoded once, held as tensors, cached as one file by what the files hold.

`image_files.py` finds the files, `decode.py` reads them. Everything that is wrong with the images is found and named
before training starts; what is odd about them is said in a sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import torch

from bnlab.data.bundle import Parts, Split, hold_out_rows
from bnlab.data.decode import Counts, Pixels, decode_all, printable
from bnlab.data.degenerate import doubts
from bnlab.data.image_files import SPLITS, Listing, list_images, refuse
from bnlab.errors import DataError

CACHE_VERSION = 2  # raised when the same files are decoded to other pixels
CHUNK = 1 << 20  # bytes


def read_folder(path: str, root: str, size: int, channels: int, test_share: float, background: str) -> Parts:
    """List, check and decode the images at `path`, or take their pixels from the cache under `root`.

    Errors: DataError naming every file and folder that cannot be used.
    """
    listing = list_images(path)
    pixels, frames = _pixels(listing, Path(root) / "cache", size, channels, background)
    labels = torch.tensor(listing.labels)
    parts = torch.arange(len(labels)).split(list(listing.sizes.values()))
    rows = dict(zip(listing.sizes, parts, strict=True))
    if "test" not in rows:
        train, test = hold_out_rows(labels[rows["train"]], max(1, round(test_share * len(rows["train"]))))
        rows |= {"train": rows["train"][train], "test": rows["train"][test]}
    images = torch.from_numpy(pixels)
    splits = {split: Split(images[of], labels[of]) for split, of in rows.items()}
    names = [printable(name) for name in listing.paths]
    in_order: dict[str, Counts] = {split: rows[split].numpy() for split in SPLITS if split in rows}
    return Parts(
        listing.classes,
        splits["train"],
        splits["test"],
        splits.get("valid"),
        passed_over=listing.passed_over
        | ({"further frames or pages": more} if (more := int((frames - 1).sum())) else {}),
        warnings=(*listing.doubts, *doubts(pixels, labels.numpy(), in_order, names)),
    )


def _pixels(listing: Listing, caches: Path, size: int, channels: int, background: str) -> tuple[Pixels, Counts]:
    """Return the pixels of all images, and how many pictures each file holds."""
    settings = f"{CACHE_VERSION}:{size}:{channels}:{background}"
    key, num_bytes = _key(listing, settings)
    cache = caches / f"folder-{key[:32]}.npz"
    cached = _read_cache(cache, (len(listing.paths), channels, size, size)) if key else None
    if cached is not None:
        return cached
    frames = np.ones(len(listing.paths), np.int64)
    pixels, faults = decode_all(
        listing.root,
        listing.paths,
        size,
        channels,
        mean_bytes=num_bytes / len(listing.paths),
        background=background,
        frames=frames,
    )
    if faults:
        refuse(listing.root, [f"{printable(path)}: {why}" for path, why in faults])
    if _key(listing, settings)[0] != key:
        raise DataError(f"data.path: files in {printable(listing.root)} changed while they were read\nrun it again")
    _write_cache(cache, pixels, frames)
    return pixels, frames


def _key(listing: Listing, settings: str) -> tuple[str, int]:
    """Return what identifies the pixels, the content of all files and how they are decoded, and the number of bytes.

    Names, sizes and times do not tell: another version of a set may have the same. Reading 60,000 small files takes
    0.5 s, decoding them 14 s. The text is empty where a file cannot be read.
    """
    digest, total = hashlib.sha256(settings.encode()), 0
    try:
        for path in listing.paths:
            content = hashlib.sha256()
            with open(os.path.join(listing.root, path), "rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    content.update(chunk)
                    total += len(chunk)
            digest.update(content.digest())
    except OSError:  # decoding names it
        return "", total
    return digest.hexdigest(), total


def _read_cache(path: Path, shape: tuple[int, ...]) -> tuple[Pixels, Counts] | None:
    """Return the cached pixels and counts, or None if there are none or they are damaged (a zip carries checksums)."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            pixels: Pixels = stored["images"]
            frames: Counts = stored["frames"]
    except Exception:  # none there, or damaged: then any part of the reader may be the one to complain
        return None
    is_right = pixels.shape == shape and pixels.dtype == np.uint8 and frames.shape == shape[:1]
    return (pixels, frames.astype(np.int64)) if is_right else None


def _write_cache(path: Path, pixels: Pixels, frames: Counts) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.savez(stream, images=pixels, frames=frames)
        temporary.replace(path)
    except OSError as error:  # the images are decoded; only the next run is slower
        logging.getLogger(__name__).warning("no cache of the images: cannot write %s: %s", path, error.strerror)
        with contextlib.suppress(OSError):
            temporary.unlink()
