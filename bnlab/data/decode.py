"""Image files to pixels: every kind that Pillow reads, as 8-bit grey or colour of one size, over black."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 64_000_000  # an image that claims more is refused unread: a few bytes can claim gigabytes
BLOCK = 256  # files a worker takes at once
SMALL = 8192  # bytes a file; below, threads wait for the interpreter lock more than they decode (measured: 0.7x)

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def decode_all(
    root: str, paths: list[str], size: int, channels: int, *, mean_bytes: float
) -> tuple[Pixels, list[tuple[str, str]]]:
    """Decode the files at `paths` under `root`, in threads if they are large enough on average.

    Returns uint8 of shape (N, channels, size, size), and (path, reason) for each file that cannot be used.
    """
    threads = min(8, os.cpu_count() or 1) if mean_bytes > SMALL else 1
    pixels = np.zeros((len(paths), channels, size, size), np.uint8)

    def block(first: int) -> list[tuple[str, str]]:
        faults = []
        for index in range(first, min(first + BLOCK, len(paths))):
            try:
                pixels[index] = _decode(os.path.join(root, paths[index]), size, channels)
            except Exception as error:  # a decoder fed with garbage raises whatever it happens to meet
                faults.append((paths[index], _reason(error)))
        return faults

    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # of large images, which are refused here, and of odd metadata
        return pixels, [fault for faults in pool.map(block, range(0, len(paths), BLOCK)) for fault in faults]


def printable(text: str) -> str:
    """Return `text` with bytes that are no UTF-8, and characters that do not print, written as escapes."""
    decoded = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)


class _Unusable(Exception):
    """The file is an image, but not one that can be used."""


def _decode(path: str, size: int, channels: int) -> Pixels:
    mode = "RGB" if channels == 3 else "L"
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise _Unusable(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        image.draft(mode, (2 * size, 2 * size))  # a large JPEG is decoded at a half, a quarter or an eighth
        flat = _flat(image)
    flat = flat if flat.mode == mode else flat.convert(mode)
    if flat.size != (size, size):
        flat = flat.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(flat)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _flat(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits a channel without transparency; what is transparent becomes black."""
    if image.mode.startswith("I"):  # 16 bits, or 32 in which Pillow holds 16
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise _Unusable("floating-point pixels, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    image.load()
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, (_Unusable, Image.DecompressionBombError)):
        return printable(str(error))
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged ({printable(str(error)) or type(error).__name__})"
