"""Contenders in turn, in an order drawn anew each round, and their ratios round by round, until they are known.

The order is drawn: in a fixed or alternating one each contender has the same neighbours, whose caches it finds, and
with A B C, C B A the outer two follow themselves (a second copy of `none` took 1.04 of the first so).

Where its tensors lie makes a contender faster or slower by a percent for as long as it lives, which no number of rounds
averages out. So contenders are made anew again and again, and these blocks of rounds are the sample of an interval.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from bnlab.compare.looks import critical_level
from bnlab.compare.statistics import t_interval
from bnlab.interval import Interval

K = TypeVar("K", bound=Hashable)
Figures = tuple[float, ...]  # of one turn, the one to compare first
WARMUP_ROUNDS = 3  # fill caches, and are not counted
RESAMPLES = 2000
LOOKS = (6, 10, 17, 28, 47, 80, 135)  # blocks, after which it may be seen that the ratios are known


@dataclass
class Turns(Generic[K]):
    """What has been measured so far: of each contender its figures of every round."""

    reference: K
    figures: dict[K, list[Figures]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Rounds that count."""
        return len(self.figures[self.reference])

    def medians(self, name: K) -> Figures:
        """Return the median of each figure of one contender."""
        return tuple(statistics.median(column) for column in zip(*self.figures[name], strict=True))

    def ratio(self, name: K) -> Interval:
        """Return a contender's first figure over the reference's: the median over rounds, with its interval."""
        return median_of(self.ratios(name))

    def ratios(self, name: K) -> list[float]:
        """Return a contender's first figure over the reference's, round by round."""
        pairs = zip(self.figures[name], self.figures[self.reference], strict=True)
        return [mine[0] / reference[0] for mine, reference in pairs]


@dataclass
class Blocks(Turns[K]):
    """Rounds in blocks, before each of which the contenders were made anew."""

    by_block: dict[K, list[float]] = field(default_factory=dict)  # the median ratio of each block that is over
    first_by_block: dict[K, list[float]] = field(default_factory=dict)  # the median of its first figure

    @property
    def count(self) -> int:
        """Blocks that are over."""
        return len(self.by_block.get(self.reference, ()))

    def block(self, contenders: Mapping[K, Callable[[], Figures]], rounds: int) -> Iterator[None]:
        """Take the rounds of one block, and yield after each that counts."""
        for turns in in_turn(contenders, self.reference, seed=self.count):
            for name, figures in turns.figures.items():
                self.figures.setdefault(name, []).append(figures[-1])
            yield
            if turns.rounds == rounds:
                break
        for name in turns.figures:
            self.by_block.setdefault(name, []).append(statistics.median(turns.ratios(name)))
            self.first_by_block.setdefault(name, []).append(turns.medians(name)[0])

    def ratio(self, name: K) -> Interval:
        """Return a contender's first figure over the reference's: the geometric mean of the blocks' medians.

        The interval is Student's t of their logarithms, at the level that holds over all of LOOKS.
        """
        logs = over_blocks([math.log(ratio) for ratio in self.by_block.get(name, ())])
        low, high = (None if bound is None else math.exp(bound) for bound in (logs.low, logs.high))
        return Interval(math.exp(logs.value), low, high, logs.n)


def over_blocks(by_block: Sequence[float]) -> Interval:
    """Return the mean over blocks with Student's t interval, at the level that holds over all of LOOKS."""
    n = len(by_block)
    center = statistics.fmean(by_block) if n else math.nan
    if n < 2:
        return Interval(center, None, None, n)
    return Interval(center, *t_interval(center, statistics.stdev(by_block), n, critical_level(LOOKS, 0.05)), n)


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
