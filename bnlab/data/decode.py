"""Image files to pixels: every kind that Pillow reads, as 8-bit grey or colour of one size; the guide has the rules."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 64_000_000  # an image that has to be held with more is refused unread: a few bytes can claim gigabytes
BLOCK = 256  # files a worker takes at once
SMALL = 8192  # bytes a file; below, threads wait for the interpreter lock more than they decode (measured: 0.7x)
ORIENTATION, BITS_PER_SAMPLE = 274, 258  # tags of EXIF and TIFF
GROUNDS = {"white": 255, "black": 0}

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
_T = Image.Transpose
_TURNED = {  # how an image is stored to how it is made upright
    2: _T.FLIP_LEFT_RIGHT,
    3: _T.ROTATE_180,
    4: _T.FLIP_TOP_BOTTOM,
    5: _T.TRANSPOSE,
    6: _T.ROTATE_270,
    7: _T.TRANSVERSE,
    8: _T.ROTATE_90,
}


def decode_all(
    root: str,
    paths: list[str],
    size: int,
    channels: int,
    *,
    mean_bytes: float,
    background: str = "white",
    frames: Counts | None = None,
) -> tuple[Pixels, list[tuple[str, str]]]:
    """Decode the files at `paths` under `root`, in threads if they are large enough on average.

    What is transparent shows `background`, white or black. `frames`, of shape (N,), receives how many pictures each
    file holds; the first is taken. Returns uint8 of shape (N, channels, size, size), and (path, reason) for each file
    that cannot be used.
    """
    threads = min(8, os.cpu_count() or 1) if mean_bytes > SMALL else 1
    pixels = np.zeros((len(paths), channels, size, size), np.uint8)

    def block(first: int) -> list[tuple[str, str]]:
        faults = []
        for index in range(first, min(first + BLOCK, len(paths))):
            try:
                # given the name alone, Pillow maps a TIFF into memory, and one stored sideways comes out scrambled
                with open(os.path.join(root, paths[index]), "rb") as file, Image.open(file) as image:
                    pixels[index] = _decode(image, size, channels, GROUNDS[background])
                    if frames is not None:
                        frames[index] = _frames(image)
            except Exception as error:  # a decoder fed with garbage raises whatever it happens to meet
                faults.append((paths[index], _reason(error)))
        return faults

    with _own_limit(), warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # of odd metadata
        return pixels, [fault for faults in pool.map(block, range(0, len(paths), BLOCK)) for fault in faults]


def printable(text: str) -> str:
    """Return `text` with bytes that are no UTF-8, and characters that do not print, written as escapes."""
    decoded = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)


class _Unusable(Exception):
    """The file is an image, but not one that can be used."""


@contextmanager
def _own_limit() -> Iterator[None]:
    """Leave the number of pixels to `_decode`: Pillow counts those of the file, though a JPEG is decoded smaller."""
    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


def _decode(image: Image.Image, size: int, channels: int, ground: int) -> Pixels:
    mode = "RGB" if channels == 3 else "L"
    whole = image.size
    image.draft(mode, (2 * size, 2 * size))  # a large JPEG is decoded at a half, a quarter or an eighth
    width, height = whole if image.info.get("progressive") else image.size  # of a progressive one all is held first
    if width * height > MAX_PIXELS:
        raise _Unusable(f"{whole[0]} x {whole[1]} pixels, more than {MAX_PIXELS:,}; save it smaller")
    image.load()
    flat = _flat(_upright(image), ground, _bits(image))
    flat = flat if flat.mode == mode else flat.convert(mode)
    if flat.size != (size, size):
        flat = flat.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(flat)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _upright(image: Image.Image) -> Image.Image:
    """Return a loaded image as viewers show it, turned as its orientation says; Pillow has turned a TIFF already."""
    turned = None
    with suppress(Exception):  # damaged metadata of a good image
        turned = _TURNED.get(image.getexif().get(ORIENTATION, 1))
    return image if turned is None else image.transpose(turned)


def _bits(image: Image.Image) -> int:
    """Return the bits of a sample where they are more than 8: a TIFF may hold 12 of 16."""
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
    return bits if 8 < bits < 16 else 16


def _flat(image: Image.Image, ground: int, bits: int) -> Image.Image:
    """Return an image of 8 bits a channel without transparency; what is transparent becomes `ground`, 0 to 255."""
    if image.mode.startswith("I"):  # 16 bits, or 32 in which many programs hold 16
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() >= 1 << bits:
            raise _Unusable(f"samples beyond {bits} bits, whose range is not known; save it with 8 or 16 bits")
        grey = (samples >> (bits - 8)).astype(np.uint8)
        if "transparency" in image.info:
            grey[samples == image.info["transparency"]] = ground
        return Image.fromarray(grey)
    if image.mode == "F":
        raise _Unusable("floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode == "LAB":
        return image.convert("RGB")  # Pillow knows no other way out of it
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (ground, ground, ground, 255)), image).convert("RGB")
    return image


def _frames(image: Image.Image) -> int:
    """Return how many pictures a file holds: pages, or frames of an animation."""
    if image.format == "MPO":  # a phone's JPEG, with a preview or a gain map behind its picture
        return 1
    with suppress(Exception):  # what follows is damaged; the first was good
        return int(getattr(image, "n_frames", 1))
    return 1


def _reason(error: Exception) -> str:
    if isinstance(error, _Unusable):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged ({printable(str(error)) or type(error).__name__})"
