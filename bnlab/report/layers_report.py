"""How far training mode and evaluation mode are apart: by depth at the last evaluation, and over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from bnlab.report.console import clean, to_ascii
from bnlab.report.curves import Curves, chart, finite, mapping, numbers, over_steps
from bnlab.report.figures import number

TITLE = "running statistics against those of the test probe, by depth"
LEGEND = (
    "mean z: |running mean - mean| / sigma, log std ratio: log(running sigma / sigma)",
    "median channel of a layer; a full bar is 0.1, or the largest of its column",
)
HEIGHT = 6  # lines of a chart
MOST_LAYERS = 40  # are shown
FULL_BAR = 0.1  # of a standard deviation, so that what does not matter does not look as if it did
_FIGURE = 8  # columns of a figure
_LEAST_BAR, _LONGEST_BAR = 4, 24
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class _Layer:
    depth: float
    name: str
    mean_z: float
    log_std_ratio: float


def by_depth(summary: Mapping[str, Any], width: int, *, unicode: bool) -> list[RenderableType]:
    """Return a line a layer: its name, mean z and log std ratio, each with a bar; nothing where no layer has them.

    A bar is as long as the figure is large beside FULL_BAR, or beside the largest of the column above that.
    """
    layers = _layers(summary)
    if not layers:
        return []
    names = [clean(layer.name) if unicode else to_ascii(clean(layer.name)) for layer in layers]
    margin = max(len("layer"), min(max(map(len, names)), width // 3))
    figures = {
        "mean z": ([layer.mean_z for layer in layers], False),
        "log std ratio": ([layer.log_std_ratio for layer in layers], True),
    }
    bar = min(max((width - margin) // 2 - max(map(len, figures)) - 3, _LEAST_BAR), _LONGEST_BAR)
    lines = [Text(f"{'layer':<{margin}}", "dim", no_wrap=True)]
    lines += [Text(_cut(name, margin, unicode).ljust(margin), no_wrap=True) for name in names]
    for head, (values, signed) in figures.items():
        full = max(FULL_BAR, *map(abs, values))
        head = f"{head:>{_FIGURE}}"
        lines[0].append(f"  {head} {'':<{bar}}")
        for line, value in zip(lines[1:], values, strict=True):
            line.append(f"  {number(value, 3, signed=signed):>{len(head)}} ")
            line.append(_bar(abs(value) / full, bar, unicode).ljust(bar), "cyan")
    for line in lines:
        line.rstrip()
    shown = lines[: MOST_LAYERS + 1]
    if len(lines) > len(shown):
        shown.append(Text(f"and {len(lines) - len(shown)} more in layers.csv", "dim"))
    return [Text(""), Text(TITLE, "bold"), *shown, *(Text(line, "dim") for line in LEGEND)]


def over_training(summary: Mapping[str, Any], room: int, *, braille: bool) -> list[Group]:
    """Return the charts of how far predictions move and of the layers farthest off; each only where something is."""
    curve = mapping(summary.get("curve"))
    moved = over_steps(curve.get("step"), {"KL": curve.get("test.kl")})
    largest = over_steps(
        curve.get("step"),
        {"mean z": _largest(summary, "mean_z"), "|log std ratio|": _largest(summary, "log_std_ratio")},
    )
    charts = []
    if _any(moved):
        title = "KL(training mode || evaluation mode), nats (log scale)"
        charts.append(chart(title, moved, "log", room, braille, height=HEIGHT))
    if _any(largest):
        charts.append(chart("layer that is farthest off (log scale)", largest, "log", room, braille, height=HEIGHT))
    return charts


def _layers(summary: Mapping[str, Any]) -> list[_Layer]:
    found = []
    for name, layer in mapping(summary.get("layers")).items():
        depth, mean_z, ratio = (finite(mapping(layer).get(key)) for key in ("depth", "mean_z", "log_std_ratio"))
        if depth is not None and mean_z is not None and ratio is not None:
            found.append(_Layer(depth, name, mean_z, ratio))
    return sorted(found, key=lambda layer: layer.depth)


def _largest(summary: Mapping[str, Any], figure: str) -> list[float]:
    """Return at each evaluation the figure of the layer in which it is farthest from 0."""
    layers = mapping(summary.get("layers")).values()
    curves = [numbers(mapping(mapping(layer).get("curve")).get(figure)) for layer in layers]
    return [max(map(abs, values)) for values in zip(*curves, strict=False)]


def _any(curves: Curves) -> bool:
    return any(math.isfinite(value) and value != 0 for _, values in curves.values() for value in values)


def _bar(share: float, width: int, unicode: bool) -> str:
    """Return a bar of `share` of `width` columns, to an eighth of a column."""
    if not unicode:
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _cut(text: str, width: int, unicode: bool) -> str:
    more = "…" if unicode else "..."
    return text if len(text) <= width else text[: width - len(more)] + more
