"""What a metric is: its unit, direction and meaning, and how it follows from a run's summary. No torch here.

metrics["steps_to_target"].derive(summary, target=0.98)    # 470.0, or Censored(at=1880.0) when never reached

Those that there are stand in `metrics.py`, which fills the table.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bnlab.errors import ConfigError, did_you_mean

Summary = Mapping[str, Any]
Direction = Literal["higher", "lower"]
Kind = Literal["mean", "time to target"]
LARGEST = 1e150  # whose square is a number still; what is larger was not measured


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
    bounds: tuple[float, float]  # that no value is beyond
    split: str | None  # of whose images it is a share
    axis: str | None  # of the curve, that a time to a target is on
    of_diverged: bool  # a run that diverged has it too
    along: bool  # it is of a whole training, not of its last evaluation
    by: str = ""  # the setting or command without which no run has it

    @property
    def is_timed(self) -> bool:
        """Whether a clock reads it."""
        return self.unit in ("ms", "s", "1/s")

    @property
    def is_skewed(self) -> bool:
        """Whether it varies by factors, as the times of a busy machine do."""
        return self.is_timed and self.kind == "mean"

    @property
    def is_whole(self) -> bool:
        """Whether its values are counts, and their means shown as such."""
        return self.unit in ("steps", "images")

    def derive(self, summary: Summary, target: float | None = None) -> float | Censored | None:
        """Return the metric of one run; None where it was not measured or, for a time to a target, none is given."""
        if self.kind == "mean":
            return self.function(summary)
        return None if target is None else self.function(summary, target)

    def column(self, target: float | None = None) -> str:
        """Return the column's title, with the target where the metric has one: `steps to 98 %`."""
        return self.title if target is None else self.title.replace("target", f"{100 * target:g} %")


SHARE, ANY = (0.0, 1.0), (-math.inf, math.inf)  # bounds
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
    bounds: tuple[float, float] = (0.0, math.inf),
    split: str | None = None,
    axis: str | None = None,
    of_diverged: bool = False,
    along: bool = False,
    by: str = "",
) -> Callable[[Derivation], Derivation]:
    """Declare the decorated function as a metric: its name is the metric's, its docstring and `by` the meaning."""

    def enter(function: Derivation) -> Derivation:
        name, meaning = function.__name__, (function.__doc__ or "").strip() + (f"; by {by}" if by else "")
        any_end, whole = of_diverged or axis is not None, along or kind == "time to target"
        metrics[name] = Metric(
            name, unit, better, title, meaning, scale, kind, curve, function, bounds, split, axis, any_end, whole, by
        )
        return function

    return enter


def is_of_the_end(name: str) -> bool:
    """Return whether a metric can be told from the last evaluation, without those before."""
    return not metrics[name].along


def find_metric(name: str) -> Metric:
    """Return the metric called `name`.

    Errors: ConfigError with the closest name.
    """
    if name not in metrics:
        raise ConfigError(f"metric {name}: no such metric{did_you_mean(name, metrics)}\n`bnlab list metrics` names all")
    return metrics[name]


def curve_of(run: Summary, name: str) -> Sequence[float]:
    """Return a recorded curve, a value an evaluation; nothing where it was not recorded."""
    curve: Sequence[float] = run["curve"].get(name, ())
    return curve


def final(run: Summary, name: str) -> float | None:
    """Return the last value of a curve."""
    values = curve_of(run, name)
    return values[-1] if values else run.get("measured", {}).get(name)


def of_farthest_layer(run: Summary, figure: str) -> float | None:
    """Return the figure of the layer in which it is farthest from 0."""
    layers = run.get("layers")
    if not isinstance(layers, Mapping):
        return None
    values = [number(layer, figure) for layer in layers.values() if isinstance(layer, Mapping)]
    return max((value for value in values if value is not None), key=abs, default=None)


def of_part(run: Summary, part: str, figure: str) -> float | None:
    """Return a figure of a part of the summary."""
    values = run.get(part)
    return number(values, figure) if isinstance(values, Mapping) else None


def number(values: Mapping[str, Any], key: str) -> float | None:
    """Return a number of what was read from a file; None where there is something else."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number that no float can hold
        return math.inf


def over_readings(run: Summary, meter: str, figure: str) -> list[float]:
    """Return what a meter read of the network, reading by reading; what is not finite, or too large, is left out."""
    found = run.get("meters")
    about = found.get(meter) if isinstance(found, Mapping) else None
    curves = about.get("curve") if isinstance(about, Mapping) else None
    values = curves.get(figure) if isinstance(curves, Mapping) else None
    numbers = [number({"": value}, "") for value in values] if isinstance(values, list) else []
    return [value for value in numbers if value is not None and abs(value) <= LARGEST]


def geometric_mean(values: Sequence[float]) -> float | None:
    """Return the geometric mean of what varies by factors; None without values, or where one is not above 0."""
    return statistics.geometric_mean(values) if values and min(values) > 0 else None


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None without values."""
    return statistics.fmean(values) if values else None
