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

K = TypeVar("K", bound=Hashable)
Figures = tuple[float, ...]  # of one turn, the one to compare first
WARMUP_ROUNDS = 3  # fill caches, and are not counted
RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """The median over rounds of one contender's figure over the reference's, with a bootstrap 95% interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval, over the ratio."""
        return (self.high - self.low) / 2 / self.value

    @property
    def contains_one(self) -> bool:
        return self.low <= 1 <= self.high


@dataclass
class Turns(Generic[K]):
    """What has been measured so far: of each contender its figures of every round."""

    reference: K
    figures: dict[K, list[Figures]] = field(default_factory=dict)
    _ratios: dict[K, tuple[int, Ratio]] = field(default_factory=dict)  # with the rounds that they are over

    @property
    def rounds(self) -> int:
        """Rounds that count."""
        return len(self.figures[self.reference])

    def medians(self, name: K) -> Figures:
        """Return the median of each figure of one contender."""
        return tuple(statistics.median(column) for column in zip(*self.figures[name], strict=True))

    def ratio(self, name: K) -> Ratio:
        """Return a contender's first figure over the reference's, round by round."""
        if name not in self._ratios or self._ratios[name][0] != self.rounds:
            pairs = zip(self.figures[name], self.figures[self.reference], strict=True)
            self._ratios[name] = self.rounds, ratio_of([mine[0] / reference[0] for mine, reference in pairs])
        return self._ratios[name][1]


def ratio_of(ratios: Sequence[float]) -> Ratio:
    """Return the median with its percentile bootstrap interval, the same for the same ratios."""
    values = np.asarray(ratios)
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[drawn], axis=1), (2.5, 97.5))
    return Ratio(statistics.median(ratios), float(low), float(high))


def in_turn(
    contenders: Mapping[K, Callable[[], Figures]], reference: K, seed: int = 0, warmup: int = WARMUP_ROUNDS
) -> Iterator[Turns[K]]:
    """Call every contender once a round, without end, and yield what there is after each round that counts."""
    names = list(contenders)
    draw = random.Random(seed)
    turns = Turns(reference, {name: [] for name in names})
    for number in range(2**31):
        found = {name: contenders[name]() for name in draw.sample(names, len(names))}
        if number >= warmup:
            for name, figures in found.items():
                turns.figures[name].append(figures)
            yield turns
