"""What statistics of the whole training set cost: the time of a step and of an epoch against the size of that set.

With fresh statistics before every step a step reads the whole set, so an epoch of N / 64 steps grows with N squared
where an ordinary epoch grows with N.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass

from benchmarks.loops import BATCH
from benchmarks.steps import one_step
from bnlab.bench.pairing import median_of
from bnlab.interval import Interval

SIZES = (512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Growth:
    """A strategy's step time at each size of the training set, and the exponent p of epoch time ~ N^p."""

    name: str
    step_ms: dict[int, float]  # median over rounds
    exponent: Interval  # median over rounds, each fitted by least squares of the logarithms


def growth(kind: str, names: tuple[str, ...], rounds: int) -> list[Growth]:
    """Do one step at each size in turn, `rounds` times, and fit the growth; the first round is not counted."""
    steppers = {(name, size): one_step(kind, True, name, size) for name in names for size in SIZES}
    figures: dict[tuple[str, int], list[float]] = {key: [] for key in steppers}
    draw = random.Random(0)
    for number in range(rounds + 1):
        for key in draw.sample(list(steppers), len(steppers)):
            milliseconds = steppers[key]()
            if number:
                figures[key].append(milliseconds)
    found = []
    for name in names:
        exponents = [
            exponent({size: figures[name, size][number] * size / BATCH for size in SIZES}) for number in range(rounds)
        ]
        medians = {size: statistics.median(figures[name, size]) for size in SIZES}
        found.append(Growth(name, medians, median_of(exponents)))
    return found


def exponent(time_of: dict[int, float]) -> float:
    """Return the least-squares slope of log time over log size."""
    return statistics.linear_regression(
        [math.log(size) for size in time_of], [math.log(milliseconds) for milliseconds in time_of.values()]
    ).slope
