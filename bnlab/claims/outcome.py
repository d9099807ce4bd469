"""What a rule and each of its parts came to: plain values, for `claim list` and `show` without what forms them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["confirmed", "refuted", "undecided"]
Reason = Literal["wide", "few", "guard", "edge", "censored", "unpaired", "clock", "mixed", "missing"]
ALPHA = 0.05


@dataclass(frozen=True)
class PartVerdict:
    """What one sentence came to."""

    text: str
    label: str
    statistic: str
    unit: str
    region: str
    thresholds: tuple[float, ...]
    verdict: Verdict
    reason: Reason | None = None
    because: str = ""  # of undecided, in words
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 1 - ALPHA  # of the interval
    n: int = 0
    over: str = "seed"  # what n counts; empty for the cases of `bnlab check`
    needed: int | None = None  # seeds that would decide it, about
    strength: float | None = None  # the smallest alpha of the whole rule at which it would stand


@dataclass(frozen=True)
class RuleVerdict:
    """What a rule came to, and each of its parts."""

    verdict: Verdict
    reason: Reason | None
    parts: tuple[PartVerdict, ...]
