"""What meters read over a training: a line a figure of the network, and a chart of the first figure of each meter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from bnlab.errors import brief, count_of
from bnlab.report.console import Terminal
from bnlab.report.curves import chart, finite, mapping, numbers, over_steps
from bnlab.report.figures import small
from bnlab.report.table import Column, draw, joined

HEIGHT = 6  # lines of a chart


def read_by_meters(summary: Mapping[str, Any], out: Terminal) -> list[Text]:
    """Return a table a meter: its figures at the first reading, half way and at the last; or why it could not be read.

    Figures by layer and by unit are in meters.csv.
    """
    lines: list[Text] = []
    trained = finite(summary.get("train_seconds"))
    for name, about in mapping(summary.get("meters")).items():
        if absent := mapping(about).get("absent"):
            lines += [Text(""), *joined([f"{name} could not be read: {absent}"], out, "yellow")]
            continue
        curves = {key: numbers(values) for key, values in mapping(mapping(about).get("curve")).items()}
        steps = curves.pop("step", [])
        if not steps or not curves:
            continue
        seconds = finite(mapping(about).get("seconds"))
        cost = "" if not seconds or not trained else f", {_share(seconds / trained)} of the time of training"
        lines += [Text(""), *joined([f"{name}: {count_of(len(steps), 'reading')}{cost}"], out, "bold")]
        lines += draw(list(_columns(steps, curves)), out).lines
    return lines


def _share(part: float) -> str:
    """Return a share in percent, two digits of it: `0.42 %`, `42 %`, `420 %`."""
    return f"{brief(100 * part)} %"


def _columns(steps: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Iterator[Column]:
    places = sorted({0, (len(steps) - 1) // 2, len(steps) - 1})
    yield Column("figure", list(curves), left=True, is_name=True)
    for place in places:
        cells = [_cell(values, place) for values in curves.values()]
        yield Column(f"step {steps[place]:,.0f}", cells)


def _cell(values: Sequence[float], place: int) -> str:
    return small(values[place] if place < len(values) else None)


def meters_over_training(summary: Mapping[str, Any], room: int, *, braille: bool) -> list[list[Text]]:
    """Return a chart a meter, of its first figure, on a log scale where it is above 0 throughout."""
    charts = []
    for name, about in mapping(summary.get("meters")).items():
        curve = mapping(mapping(about).get("curve"))
        figure = next((key for key in curve if key != "step"), "")
        drawn = over_steps(curve.get("step"), {figure: curve.get(figure)})
        if any(math.isfinite(value) for _, values in drawn.values() for value in values):
            log = all(value > 0 for _, values in drawn.values() for value in values if math.isfinite(value))
            title = f"{name}: {figure}{' (log scale)' if log else ''}"
            charts.append(chart(title, drawn, "log" if log else "linear", room, braille, height=HEIGHT))
    return charts
