"""The slope of a figure over the levels of a key within each seed: one number a seed, for tables and for claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

FEWEST_LEVELS = 3


class NoSlope(Exception):
    """Why there is none, in words."""


def slopes(
    points: Mapping[int, Sequence[tuple[float, float]]], *, log_levels: bool = False, log_values: bool = False
) -> dict[int, float]:
    """Return the least-squares slope of each seed that has every level; `points` are (level, value) by seed.

    Logarithms are natural. Errors: NoSlope.
    """
    levels = {level for pairs in points.values() for level, _ in pairs}
    if len(levels) < FEWEST_LEVELS:
        raise NoSlope(f"there are {len(levels)} levels with a figure; a slope needs {FEWEST_LEVELS}")
    whole = {seed: pairs for seed, pairs in points.items() if {level for level, _ in pairs} == levels}
    if not whole:
        raise NoSlope("no seed has a figure at every level")
    numbers = [pair for pairs in whole.values() for pair in pairs]
    if any((log_levels and level <= 0) or (log_values and value <= 0) for level, value in numbers):
        raise NoSlope("a number is not positive, so it has no logarithm")

    def least_squares(pairs: Sequence[tuple[float, float]]) -> float:
        xs = [math.log(level) if log_levels else level for level, _ in pairs]
        ys = [math.log(value) if log_values else value for _, value in pairs]
        return statistics.linear_regression(xs, ys).slope

    return {seed: least_squares(pairs) for seed, pairs in whole.items()}
