"""Decoded images that teach nothing, or that make an accuracy mean something else: each kind with its count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bnlab.data.decode import Counts, Pixels
from bnlab.errors import count_of

FEW_LEVELS = 16  # of 256 from the darkest to the brightest: 12 bits taken for 16, or class numbers for grey values


def doubts(pixels: Pixels, labels: Counts, splits: Mapping[str, Counts], paths: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each kind of doubt about images, uint8 of shape (N, C, H, W), with `labels` of shape (N,).

    `splits` are the rows of each, training first; `paths` are what the images are called.
    """
    by_channel = pixels.reshape(*pixels.shape[:2], -1)
    spread = (by_channel.max(2) - by_channel.min(2)).max(1)
    for text, is_so in (
        ("of one colour only; what is transparent shows data.background", spread == 0),
        (f"of fewer than {FEW_LEVELS} of 256 levels", (spread > 0) & (spread < FEW_LEVELS)),
    ):
        if is_so.any() and by_channel.shape[2] > 1:
            count = int(is_so.sum())
            yield f"{count:,} of {len(pixels):,} images {_be(count)} {text}; one is {paths[int(is_so.argmax())]}"
    first: dict[int, tuple[int, str]] = {}
    elsewhere = []
    for split, rows in splits.items():
        copies = []
        for row in rows[spread[rows] > 0].tolist():
            earlier, there = first.setdefault(hash(pixels[row].tobytes()), (row, split))
            if earlier != row and np.array_equal(pixels[earlier], pixels[row]):
                copies += [(row, earlier)] if there != split else []
                elsewhere += [(row, earlier)] if labels[row] != labels[earlier] else []
        if copies:
            yield (
                f"{len(copies):,} of {len(rows):,} {split} images {_be(len(copies))} in training too, "
                f"to be known by heart; one is {_both(copies[0], paths)}"
            )
    if elsewhere:
        counted = count_of(len(elsewhere), "image")
        yield f"{counted} {_be(len(elsewhere))} in another class too; one is {_both(elsewhere[0], paths)}"


def _be(number: int) -> str:
    return "is" if number == 1 else "are"


def _both(pair: tuple[int, int], paths: Sequence[str]) -> str:
    return " and ".join(paths[row] for row in pair)
