"""How far training mode and evaluation mode are apart: by depth at the last evaluation, and over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from bnlab.report.bars import fine_bar
from bnlab.report.console import Terminal
from bnlab.report.curves import Curves, chart, finite, mapping, numbers, over_steps
from bnlab.report.figures import number
from bnlab.report.table import Column, draw, joined, shortened

TITLE = "running statistics against those of the test probe, by depth"
LEGEND = (
    "mean z: |running mean - mean| / sigma, log std ratio: log(running sigma / sigma)",
    "median channel of a layer; a full bar is 0.1, or the largest of its column",
)
HEIGHT = 6  # lines of a chart
MOST_LAYERS = 40  # are shown
FULL_BAR = 0.1  # of a standard deviation, so that what does not matter does not look as if it did
_FIGURE = 13  # columns of a figure and what stands between
_LEAST_BAR, _LONGEST_BAR = 4, 24


@dataclass(frozen=True)
class Layer:
    depth: float
    name: str
    mean_z: float
    log_std_ratio: float


def by_depth(summary: Mapping[str, Any], out: Terminal) -> list[Text]:
    """Return a line a layer: its name, mean z and log std ratio, each with a bar; nothing where no layer has them.

    A bar is as long as the figure is large beside FULL_BAR, or beside the largest of the column above that.
    """
    layers = layers_of(summary)
    if not layers:
        return []
    shown = layers[:MOST_LAYERS]
    room = max(out.width // 3, len("layer"))
    names = [shortened(layer.name, room) for layer in shown]
    bar = min(max((out.width - max(map(len, names))) // 2 - _FIGURE, _LEAST_BAR), _LONGEST_BAR)
    columns = [Column("layer", names, left=True, is_name=True)]
    for title, key, signed in (("mean z", "mean_z", False), ("log std ratio", "log_std_ratio", True)):
        values = [getattr(layer, key) for layer in layers]
        full = max(FULL_BAR, *map(abs, values))
        columns.append(Column(title, [number(value, 3, signed=signed) for value in values[:MOST_LAYERS]]))
        bars = [fine_bar(abs(value) / full, bar, out) for value in values[:MOST_LAYERS]]
        columns.append(Column("", bars, left=True, styles=["cyan"] * len(bars)))
    more = len(layers) - len(shown)
    below = [f"and {more} more in layers.csv"] if more else []
    text = [line for part in (*below, *LEGEND) for line in joined([part], out, "dim")]
    return [Text(""), *joined([TITLE], out, "bold"), *draw(columns, out).lines, *text]


def over_training(summary: Mapping[str, Any], room: int, *, braille: bool) -> list[list[Text]]:
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


def layers_of(summary: Mapping[str, Any]) -> list[Layer]:
    """Return the layers that keep statistics, at the last evaluation, by depth."""
    layers = []
    for name, layer in mapping(summary.get("layers")).items():
        depth, mean_z, ratio = (finite(mapping(layer).get(key)) for key in ("depth", "mean_z", "log_std_ratio"))
        if depth is not None and mean_z is not None and ratio is not None:
            layers.append(Layer(depth, name, mean_z, ratio))
    return sorted(layers, key=lambda layer: layer.depth)


def _largest(summary: Mapping[str, Any], figure: str) -> list[float]:
    """Return at each evaluation the figure of the layer in which it is farthest from 0."""
    layers = mapping(summary.get("layers")).values()
    curves = [numbers(mapping(mapping(layer).get("curve")).get(figure)) for layer in layers]
    return [max(map(abs, values)) for values in zip(*curves, strict=False)]


def _any(curves: Curves) -> bool:
    return any(math.isfinite(value) and value != 0 for _, values in curves.values() for value in values)
