"""The largest level of a key at which something holds, found by trying one level of a ladder after another.

passed: dict[float, bool] = {}
while (level := next_level(passed, levels, start)) is not None:
    passed[level] = try_at(level)
bracket(passed)    # Bracket(low=0.16, high=0.32, later=0): it holds up to 0.16, and fails at 0.32
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bnlab.compare.statistics import estimate_median
from bnlab.errors import ConfigError

FARTHEST_DOWN = 100.0  # times below the start, where that fails
MOST_LEVELS = 200
Outcome = Literal["passes", "fails", "lost"]  # lost: its run diverged
IN_A_ROW = 2  # failures that end a climb: what holds above a single one is seen, and counted


@dataclass(frozen=True)
class Levels:
    """The levels of a ladder: start * factor^i, from a hundredth of the start to the top."""

    start: float
    top: float
    factor: float
    resolution: float | None = None

    def __post_init__(self) -> None:
        if self.top < self.start:
            raise ConfigError(f"--to {self.top:g}: must be at least --from {self.start:g}")
        if len(self.all) > MOST_LEVELS:
            raise ConfigError(f"--factor {self.factor:g}: makes {len(self.all):,} levels, more than {MOST_LEVELS}")

    @property
    def all(self) -> list[float]:
        """Rising, each as one would type it."""
        down, up = (math.floor(math.log(ratio, self.factor) + 1e-9) for ratio in (FARTHEST_DOWN, self.top / self.start))
        return [float(f"{self.start * self.factor**i:.6g}") for i in range(-down, up + 1)]


@dataclass(frozen=True)
class Bracket:
    """Where the largest level lies: in [low, high), as far as it was tried."""

    low: float  # the last level before the first failure; 0 where the lowest one fails
    high: float  # the first failure; infinite where none fails
    later: int = 0  # levels above the first failure at which it holds all the same

    @property
    def is_closed(self) -> bool:
        """Whether both ends were found."""
        return self.low > 0 and self.high < math.inf

    def over(self, other: Bracket) -> Bracket:
        """Return where the ratio of the two largest levels lies."""
        return Bracket(self.low / other.high, self.high / other.low if other.low else math.inf)


@dataclass(frozen=True)
class Searched:
    """An arm, and where its largest level lies."""

    label: str
    brackets: Mapping[int, Bracket]  # by seed
    baseline: int | None  # its number among the arms, which is its own for a baseline
    num_runs: int
    tried: Mapping[int, Mapping[float, Outcome]]  # by seed and level

    def over(self, base: Searched) -> dict[int, Bracket]:
        """Return where the ratio to another arm's lies, of each seed that both have."""
        return {seed: each.over(base.brackets[seed]) for seed, each in self.brackets.items() if seed in base.brackets}


def bracket(passed: Mapping[float, bool]) -> Bracket:
    """Return what levels that were tried say of the largest one."""
    levels = sorted(passed)
    first = next((i for i, level in enumerate(levels) if not passed[level]), len(levels))
    return Bracket(
        low=levels[first - 1] if first else 0.0,
        high=levels[first] if first < len(levels) else math.inf,
        later=sum(passed[level] for level in levels[first:]),
    )


def next_level(
    passed: Mapping[float, bool], levels: Sequence[float], start: float, resolution: float | None = None
) -> float | None:
    """Return the level to try next, of rising `levels` that can be tried; None where nothing is left to learn.

    The first is `start`. While all fail it goes down, then up to the second failure in a row. With `resolution` the
    bracket is then halved, on the logarithm, until its ends are no more than this factor apart.
    """
    if not passed:
        return next((level for level in levels if level >= start), None)
    found, lowest = bracket(passed), min(passed)
    if found.low == 0 and (below := [level for level in levels if level < lowest]):
        return below[-1]
    failures = 0
    for level in (level for level in levels if level >= lowest):
        if level not in passed:
            return level
        failures = 0 if passed[level] else failures + 1
        if failures == IN_A_ROW:
            break
    if resolution is None or not found.is_closed or found.high <= found.low * resolution * (1 + 1e-6):
        return None
    middle = float(f"{math.sqrt(found.low * found.high):.4g}")
    return middle if found.low < middle < found.high and middle not in passed else None


def median(brackets: Sequence[Bracket]) -> tuple[Bracket, Bracket | None]:
    """Return where the median of largest levels lies, and where its 95% interval over seeds does; None of one seed.

    The median of values that lie in [low, high) each lies between the medians of their ends, and an interval of ranks
    of theirs, as of times to a target, between the same ranks of the ends. Errors: StatisticsError for no bracket.
    """
    lows, highs = (estimate_median([getattr(each, end) for each in brackets]) for end in ("low", "high"))
    middle = Bracket(lows.value, math.inf if math.isnan(highs.value) else highs.value)
    if lows.low is None:
        return middle, None
    return middle, Bracket(lows.low, math.inf if highs.high is None else highs.high)
