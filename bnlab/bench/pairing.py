"""Contenders in turn, in an order drawn anew each round, and their ratios round by round, until they are known.

The order is drawn: in a fixed or alternating one each contender has the same neighbours, whose caches it finds, and
with A B C, C B A the outer two follow themselves (a second copy of `none` took 1.04 of the first so).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from bnlab.interval import Interval

K = TypeVar("K", bound=Hashable)
Figures = tuple[float, ...]  # of one turn, the one to compare first
WARMUP_ROUNDS = 3  # fill caches, and are not counted
RESAMPLES = 2000


@dataclass
class Turns(Generic[K]):
    """What has been measured so far: of each contender its figures of every round."""

    reference: K
    figures: dict[K, list[Figures]] = field(default_factory=dict)
    _ratios: dict[K, Interval] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Rounds that count."""
        return len(self.figures[self.reference])

    def medians(self, name: K) -> Figures:
        """Return the median of each figure of one contender."""
        return tuple(statistics.median(column) for column in zip(*self.figures[name], strict=True))

    def ratio(self, name: K) -> Interval:
        """Return a contender's first figure over the reference's, round by round."""
        if name not in self._ratios or self._ratios[name].n != self.rounds:
            pairs = zip(self.figures[name], self.figures[self.reference], strict=True)
            self._ratios[name] = median_of([mine[0] / reference[0] for mine, reference in pairs])
        return self._ratios[name]


def median_of(by_round: Sequence[float]) -> Interval:
    """Return the median over rounds with its percentile bootstrap 95% interval, the same for the same values."""
    values = np.asarray(by_round)
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[drawn], axis=1), (2.5, 97.5))
    return Interval(statistics.median(by_round), float(low), float(high), len(values), kind="median")


def in_turn(
    contenders: Mapping[K, Callable[[], Figures]], reference: K, seed: int = 0, warmup: int = WARMUP_ROUNDS
) -> Iterator[Turns[K]]:
    """Call every contender once a round, without end, and yield what there is after each round that counts."""
    names = list(contenders)
    draw = random.Random(seed)
    turns = Turns(reference, {name: [] for name in names})
    for number in range(2**31):
        by_name = {name: contenders[name]() for name in draw.sample(names, len(names))}
        if number >= warmup:
            for name, figures in by_name.items():
                turns.figures[name].append(figures)
            yield turns
