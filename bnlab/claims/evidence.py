"""What runs say of a number, with an interval at any level: numbers over seeds, a count, a bench, an exact value.

Of one number a seed it is Student's t over seeds, of a ratio on logarithms; of a rate Clopper and Pearson's; of a bench
the recorded one. An exact value is its own interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bnlab.claims.outcome import Reason
from bnlab.compare.deciding import FEWEST_PAIRS, Paired, Rule
from bnlab.compare.statistics import LEVEL
from bnlab.errors import count_of
from bnlab.interval import Interval
from bnlab.metric import LARGEST

MOST_LOG = math.log(LARGEST)  # beyond it an end of an interval bounds nothing


class Undecidable(Exception):
    """Why runs give no figure, in one word and in a sentence."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Sample:
    """One number a seed, or a block of a bench."""

    values: Sequence[float]  # of a ratio their logarithms
    logs: bool = False
    scale: float = 0.0  # of the figures that they are differences of
    over: str = "seed"  # what a number is of
    slack: tuple[float, float] = (0.0, 0.0)  # by how much the mean may in truth be lower and higher: it is on a grid
    step: float = 0.0  # what values are counted in

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def value(self) -> float:
        mean = math.fsum(self.values) / self.n
        return math.exp(mean) if self.logs else mean

    def paired(self, alpha: float, looks: tuple[int, ...]) -> Paired:
        return Paired(self.values, Rule(looks, alpha), self.scale, self.slack, self.step)

    def interval(self, alpha: float, looks: tuple[int, ...]) -> Interval:
        """Return the mean with its interval. Errors: Undecidable with too few seeds, or without any spread."""
        if self.n < FEWEST_PAIRS["t"]:
            raise Undecidable("few", f"{count_of(self.n, self.over)}; {FEWEST_PAIRS['t']} or more can decide")
        found = self.paired(alpha, looks).interval()
        if found.low is None or found.high is None:
            raise Undecidable(
                "few", f"all {self.n} {self.over}s agree to the digit, too few to say anything of a spread"
            )
        if not self.logs:
            return found
        return Interval(_exp(found.value), _exp(found.low), _exp(found.high), self.n, sd=found.sd)


@dataclass(frozen=True)
class Count:
    """In how many of `n` runs a condition held."""

    number: int
    n: int
    over: str = "run"

    @property
    def value(self) -> float:
        return self.number / self.n

    def interval(self, alpha: float, looks: tuple[int, ...]) -> Interval:
        """Return the share with Clopper and Pearson's interval, its level shared among the looks."""
        from scipy.special import betaincinv

        k, n, tail = self.number, self.n, alpha / max(len(looks), 1) / 2
        low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
        high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
        return Interval(k / n, low, high, n)


@dataclass(frozen=True)
class Known:
    """A value without an interval."""

    value: float
    n: int
    over: str = "seed"

    def interval(self, alpha: float, looks: tuple[int, ...]) -> Interval:
        return Interval(self.value, self.value, self.value, self.n)


@dataclass(frozen=True)
class Timed:
    """A product of ratios of a bench, as logarithms, each with a 95% interval; and of seeds, independent of these."""

    ratios: Sequence[tuple[float, float, float]]  # value, low, high
    n: int  # rounds
    seeds: Sample | None = None

    @property
    def over(self) -> str:
        return self.seeds.over if self.seeds else "round"

    @property
    def value(self) -> float:
        return math.exp(math.fsum(value for value, _, _ in self.ratios)) * (self.seeds.value if self.seeds else 1.0)

    def interval(self, alpha: float, looks: tuple[int, ...]) -> Interval:
        """Return the product with its interval: squares of half-widths on the logarithm add."""
        normal = statistics.NormalDist()
        wider = normal.inv_cdf(1 - alpha / 2) / normal.inv_cdf(1 - (1 - LEVEL) / 2)
        centers = [value for value, _, _ in self.ratios]
        below = [wider * (value - low) for value, low, _ in self.ratios]
        above = [wider * (high - value) for value, _, high in self.ratios]
        n = self.n
        if self.seeds is not None:
            found = self.seeds.interval(alpha, looks)
            n = found.n
            centers.append(math.log(found.value))
            below.append(math.log(found.value / found.low) if found.low else math.inf)
            above.append(math.log((found.high or math.inf) / found.value))
        center = math.fsum(centers)
        return Interval(_exp(center), _exp(center - math.hypot(*below)), _exp(center + math.hypot(*above)), n)


def _exp(log: float) -> float:
    return math.exp(log) if log < MOST_LOG else math.inf


Evidence = Sample | Count | Known | Timed
