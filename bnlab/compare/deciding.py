"""How a comparison of arms with a baseline ends: the rule, its tests of paired differences, and the verdict on an arm.

One rule gives p, star, interval and verdict, so that none of them contradicts another: with looks at n_1 < ... < n_K
pairs, p is P(the p of any look is at most this one | no difference), and the interval is at the level 1 - c of each
look, which excludes 0 exactly where that p is below alpha. With a single look both are the ordinary ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

from bnlab.compare.statistics import ROUNDING, SMALLEST_P, holm, t_interval, t_tails
from bnlab.interval import Interval, tell_nothing

if TYPE_CHECKING:
    from bnlab.compare.looks import Array

Test = Literal["t", "signs"]
Verdict = Literal["better", "worse", "different", "no difference that matters", "undecided"]
FEWEST_PAIRS: dict[Test, int] = {"t": 3, "signs": 6}  # that decide anything
DRAWN_ABOVE = 14  # pairs; beyond these the signs are drawn, 2^14 - 1 times


@dataclass(frozen=True)
class Rule:
    """When an arm is decided: looks at these numbers of pairs, all together at the level `alpha`.

    `margin` is the smallest difference that matters, in the unit of the values; None: every difference does.
    """

    looks: tuple[int, ...] = ()  # none: one look, at whatever there is
    alpha: float = 0.05
    test: Test = "t"
    margin: float | None = None

    @cached_property
    def counted(self) -> tuple[int, ...]:
        """The looks that can decide something."""
        return tuple(n for n in self.looks if n >= FEWEST_PAIRS[self.test])

    @cached_property
    def level(self) -> float:
        """c, the two-sided level of each look."""
        if len(self.counted) < 2:
            return self.alpha
        from bnlab.compare.looks import critical_level  # numpy is loaded where there are looks only

        return critical_level(self.counted, self.alpha)

    def sequential(self, p: float) -> float:
        """Return the p of one look corrected for all of them."""
        if len(self.counted) < 2:
            return p
        from bnlab.compare.looks import sequential_p

        return sequential_p(self.counted, p)


@dataclass(frozen=True)
class Paired:
    """The differences of an arm from its baseline, seed by seed, under a rule; at least one, all finite.

    `scale` is the size of the values themselves, of which differences are only rounding below ROUNDING times it.
    `slack` is by how much the mean may in truth be lower and higher, where values are known to a grid only. `step` is
    what they are counted in, such as one image of all: equal differences vary by less than it, not by nothing.
    """

    differences: Sequence[float]
    rule: Rule
    scale: float = 0.0
    slack: tuple[float, float] = (0.0, 0.0)
    step: float = 0.0
    is_open: bool = False  # no look is over, or runs are missing that could undo what the others show
    num_lost: int = 0  # runs that have no value
    times: int = 1  # by what a choice of settings multiplies p

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        baseline: Sequence[float],
        rule: Rule,
        slack: tuple[float, float] = (0.0, 0.0),
        step: float = 0.0,
    ) -> Paired:
        """Return the differences of `values` from those of a baseline, pair by pair."""
        differences = [v - b for v, b in zip(values, baseline, strict=True)]
        return cls(differences, rule, max(map(abs, (*values, *baseline))), slack, step)

    @cached_property
    def mean(self) -> float:
        """The mean difference."""
        mean = math.fsum(self.differences) / len(self.differences)
        return 0.0 if abs(mean) <= self._rounding else mean

    @cached_property
    def sd(self) -> float:
        """Standard deviation of the differences (n - 1); 0 of a single one."""
        n = len(self.differences)
        sd = math.sqrt(math.fsum((d - self.mean) ** 2 for d in self.differences) / (n - 1)) if n > 1 else 0.0
        return 0.0 if sd <= self._rounding else sd

    @property
    def _below_and_above(self) -> tuple[float, float]:
        """By how much the mean may in truth be lower and higher, whatever its interval."""
        low, high = self.slack
        return (low, high) if self.sd else (max(low, self.step), max(high, self.step))

    def interval(self) -> Interval:
        """Return the mean difference with its interval at the level 1 - c and its p, corrected for the looks.

        p is None below FEWEST_PAIRS, and for a constant difference other than 0 with fewer pairs than signs need: no
        spread was seen that could say how likely it is.
        """
        (low, high), (below, above) = self._bounds(), self._below_and_above
        nearest = max(self.mean - below, 0.0) if self.mean > 0 else min(self.mean + above, 0.0)
        p = self._p(self.mean - nearest)
        if low is not None and high is not None:
            low, high = low - below, high + above
        n, sd = len(self.differences), self.sd if len(self.differences) > 1 else None
        return Interval(self.mean, low, high, n, self._corrected(p), sd, num_lost=self.num_lost)

    def margin_p(self) -> float | None:
        """Return the p of |true difference| >= margin, by two one-sided tests; corrected for the looks.

        It is below alpha exactly where the whole interval lies within the margin. None: nothing can be said.
        """
        margin = self.rule.margin
        if margin is None or self.num_lost:
            return None
        below, above = self._below_and_above
        if self.mean - below <= -margin or self.mean + above >= margin:
            return 1.0
        both = self._p(-margin + below), self._p(margin - above)
        return None if both[0] is None or both[1] is None else self._corrected(max(both[0], both[1]))

    def _corrected(self, p: float | None) -> float | None:
        return None if p is None else self.rule.sequential(min(1.0, p * self.times))

    @property
    def _rounding(self) -> float:
        return ROUNDING * max(self.scale, max(map(abs, self.differences)))

    def _p(self, mean: float) -> float | None:
        """Return the two-sided p of one look that the true mean difference is `mean`."""
        n = len(self.differences)
        if self.is_open or n < FEWEST_PAIRS[self.rule.test]:
            return None
        off = self.mean - mean
        if abs(off) <= self._rounding:
            return 1.0
        if self.sd == 0.0:  # all signs but one pair of choices are less extreme
            return max(2.0 ** (1 - n), SMALLEST_P) if n >= FEWEST_PAIRS["signs"] else None
        if self.rule.test == "signs":
            means = self._subset_means
            beyond = (means <= mean + self._rounding) if off > 0 else (means >= mean - self._rounding)
            return min(1.0, 2 * (1 + int(beyond.sum())) / (len(means) + 1))
        return max(t_tails(off / self.sd * math.sqrt(n), n - 1), SMALLEST_P)

    def _bounds(self) -> tuple[float | None, float | None]:
        n = len(self.differences)
        if n < 2 or (self.rule.test == "signs" and n < FEWEST_PAIRS["signs"]):
            return None, None
        if self.sd == 0.0 and tell_nothing(n, self.rule.level):
            return None, None
        if self.rule.test == "signs" and self.sd:
            means = self._subset_means
            k = math.floor(self.rule.level * (len(means) + 1) / 2 + 1e-9)
            return (float(means[k - 1]), float(means[-k])) if k else (None, None)
        return t_interval(self.mean, self.sd, n, self.rule.level)

    @cached_property
    def _subset_means(self) -> Array:
        """The sorted means of all non-empty subsets: those that a change of signs compares with 0 (Hartigan 1969)."""
        means: Array = _subsets(len(self.differences)) @ self.differences
        means.sort()
        return means


@lru_cache(maxsize=16)
def _subsets(n: int) -> Array:
    """Return the weights in the mean of each non-empty subset of `n`, or of subsets drawn with a fixed seed."""
    import numpy as np

    if n <= DRAWN_ABOVE:
        chosen = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
    else:
        chosen = np.random.default_rng(0).integers(0, 2, (2**DRAWN_ABOVE - 1, n))
        chosen[chosen.sum(1) == 0, 0] = 1
    weights: Array = chosen / chosen.sum(1, keepdims=True)
    return weights


def decide(
    pairs: Sequence[Paired | None], better: Literal["higher", "lower"] | None
) -> list[tuple[Interval | None, Verdict]]:
    """Return for each arm its difference, p corrected over the arms (Holm), and what it comes to.

    *Better* or *worse*: p is at most alpha, and the difference exceeds the margin where there is one. *No difference
    that matters*: the same for the margin's own p, so that the whole interval lies within it. A metric without a
    direction has arms that are *different* only. None, an arm without a pair, is undecided.
    """
    intervals = [None if each is None else each.interval() for each in pairs]
    differing = holm([None if each is None else each.p for each in intervals])
    within = holm([None if each is None else each.margin_p() for each in pairs])
    decided: list[tuple[Interval | None, Verdict]] = []
    for pair, interval, p, p_margin in zip(pairs, intervals, differing, within, strict=True):
        verdict: Verdict = "undecided"
        rule = Rule() if pair is None else pair.rule
        if interval is not None and p_margin is not None and p_margin <= rule.alpha:
            verdict = "no difference that matters"
        elif interval is not None and p is not None and p <= rule.alpha and abs(interval.value) > (rule.margin or 0.0):
            verdict = "better" if (interval.value > 0) == (better == "higher") else "worse"
            verdict = "different" if better is None else verdict
        decided.append((interval and replace(interval, p=p), verdict))
    return decided
