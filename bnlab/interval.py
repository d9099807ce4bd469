"""A value with its 95% interval: the one type of all means, medians, ratios and paired differences. No torch here.

Equal values are no certainty: accuracies are counts, and two of them are often the same. They have no interval while
they are so few that signs alone would agree as often (`tell_nothing`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its 95% interval; None where a single sample leaves nothing to estimate them from.

    The median of times to a target has the `num_missed` of its `n` runs that ended without arriving, the last of them
    at `limit`: a bound beyond that is None too, and where fewer than half arrived the value is nan. Such a time is
    known to the grid of evaluations only: it lies in (`since`, `value`], and `low` is of the evaluations before.
    """

    value: float  # nan: not known
    low: float | None
    high: float | None
    n: int  # samples, seeds or rounds
    p: float | None = None  # of a paired difference, two-sided; Holm-corrected in the rows of a comparison
    sd: float | None = None  # of the differences
    num_missed: int = 0
    is_beside: bool = False  # a time of runs that ran while others did
    num_lost: int = 0  # runs that have no such value, diverged ones above all: this one is over the others only
    since: float | None = None
    limit: float | None = None
    kind: Literal["mean", "median"] = "mean"

    @property
    def half(self) -> float:
        """Half the interval's width; infinite without an interval."""
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def relative_half(self) -> float:
        """Half the interval's width over the value."""
        return self.half / self.value

    def is_above(self, number: float | None) -> bool:
        """Return whether the whole interval lies above `number`; False where either is not known."""
        return self.low is not None and number is not None and self.low > number

    def is_below(self, number: float | None) -> bool:
        """Return whether the whole interval lies below `number`; False where either is not known."""
        return self.high is not None and number is not None and self.high < number

    def excludes(self, number: float) -> bool:
        """Return whether the value can be told from `number`."""
        return self.is_above(number) or self.is_below(number)


def tell_nothing(n: int, level: float = 0.05) -> bool:
    """Return whether `n` equal values are too few to bound anything: all lie on one side by chance in 2^(1 - n)."""
    return 2.0 ** (1 - n) > level
