"""The figures of a verdict as text: `+0.4 points (-0.3 to +1.1), 5 seeds`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bnlab.errors import count_of
from bnlab.report.figures import bound, decimals_for, end_text, number, small

if TYPE_CHECKING:
    from bnlab.claims.outcome import PartVerdict


def figures_of(part: PartVerdict) -> str:
    """Return estimate, interval and n in words; empty without an estimate."""
    if part.estimate is None:
        return ""
    unit = f" {part.unit}" if part.unit else ""
    return interval_of(part, unit) + (f", {count_of(part.n, part.over)}" if part.over else "")


def interval_of(part: PartVerdict, unit: str = "") -> str:
    """Return `0.97 (0.93 to 1.02)` with as many digits as the interval supports."""
    if part.estimate is None:
        return ""
    signed = part.statistic == "difference"
    low, high = part.low, part.high
    if low is None or high is None or low == high:
        return small(part.estimate, signed=signed) + unit
    low, high = bound(low, part.estimate), bound(high, part.estimate)
    if part.statistic in ("ratio", "largest") or "step_ratio" in part.text:
        return f"{small(part.estimate)}{unit} ({small(low)} to {small(high) if math.isfinite(high) else '∞'})"
    places = decimals_for([part.estimate], [(high - low) / 2])
    ends = [end_text(end, places, signed=signed) for end in (low, high)]
    return f"{number(part.estimate, places, signed=signed)}{unit} ({ends[0]} to {ends[1]})"
