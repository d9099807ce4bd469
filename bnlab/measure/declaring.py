"""What a metric of the tables is, and how one is declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Summary = Mapping[str, Any]
Direction = Literal["higher", "lower"]
Kind = Literal["mean", "time to target"]


@dataclass(frozen=True)
class Censored:
    """A target that was not reached by `at`, where the run ended."""

    at: float


@dataclass(frozen=True)
class Metric:
    """One column of every table."""

    name: str
    unit: str
    better: Direction | None  # None: neither direction is the better one
    title: str  # of a column, short
    meaning: str
    scale: float  # what a value is multiplied by for display: 100 for fractions shown in percent
    kind: Kind
    curve: str | None  # the recorded curve that shows how it came about
    function: Callable[..., float | Censored | None]

    def derive(self, summary: Summary, target: float | None = None) -> float | Censored | None:
        """Return the metric of one run; None where it was not measured or, for a time to a target, none is given."""
        if self.kind == "mean":
            return self.function(summary)
        return None if target is None else self.function(summary, target)

    def column(self, target: float | None = None) -> str:
        """Return the column's title, with the target where the metric has one: `steps to 98 %`."""
        return self.title if target is None else self.title.replace("target", f"{100 * target:g} %")


metrics: dict[str, Metric] = {}
Derivation = Callable[..., float | Censored | None]


def metric(
    title: str,
    unit: str,
    better: Direction | None,
    *,
    scale: float = 1.0,
    kind: Kind = "mean",
    curve: str | None = None,
) -> Callable[[Derivation], Derivation]:
    """Declare the decorated function as a metric: its name is the metric's, its docstring the meaning."""

    def enter(function: Derivation) -> Derivation:
        name, meaning = function.__name__, (function.__doc__ or "").strip()
        metrics[name] = Metric(name, unit, better, title, meaning, scale, kind, curve, function)
        return function

    return enter
