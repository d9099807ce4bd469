"""Contenders in turn, in an order drawn anew each round, and their ratios round by round."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bnlab.compare.statistics import bootstrap_interval


@dataclass(frozen=True)
class Ratio:
    """A contender's figure over the reference's: median over rounds with a bootstrap 95% interval."""

    name: str
    figure: float  # median, in the contenders' own unit
    ratio: float
    low: float
    high: float
    rounds: int


def side_by_side(contenders: Mapping[str, Callable[[], float]], reference: str, rounds: int) -> list[Ratio]:
    """Call every contender once a round; each returns its figure, such as images a second.

    The order of each round is drawn: in a fixed or alternating one each contender has the same neighbours, whose caches
    it finds, and with A B C, C B A the outer two follow themselves (a second copy of `none` took 1.04 of the first so).
    The first round is not counted: it fills caches.
    """
    names = list(contenders)
    draw = random.Random(0)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(rounds + 1):
        for name in draw.sample(names, len(names)):
            figure = contenders[name]()
            if round_number:
                figures[name].append(figure)
    found = []
    for name in names:
        ratios = [a / b for a, b in zip(figures[name], figures[reference], strict=True)]
        middle = statistics.median(ratios)
        low, high = bootstrap_interval(ratios) or (middle, middle)
        found.append(Ratio(name, statistics.median(figures[name]), middle, low, high, rounds))
    return found
