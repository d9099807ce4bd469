"""Curves out of a summary, which may hold any JSON: as numbers, and as a chart with its title and key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rich.text import Text

from bnlab.report.chart import COLOURS, MARKS, Axis, line_chart

BETWEEN = 3  # columns between two charts
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name -> steps, values; nan where one is missing


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a JSON object, anything else as an empty one."""
    return value if isinstance(value, Mapping) else {}


def finite(value: Any) -> float | None:
    """Return a finite number as float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        return None
    return float(value)


def numbers(values: Any) -> list[float]:
    """Return a list of numbers as floats, what is not finite as nan; anything else as an empty list."""
    known = [finite(value) for value in values] if isinstance(values, list) else []
    return [math.nan if value is None else value for value in known]


def over_steps(steps: Any, values: Mapping[str, Any]) -> Curves:
    """Return the curves in `values` over `steps`; only those with a value for each step, and two of them or more."""
    places = numbers(steps)
    curves = {name: numbers(curve) for name, curve in values.items()}
    return {
        name: (places, curve)
        for name, curve in curves.items()
        if len(curve) == len(places) > 1 and all(map(math.isfinite, places))
    }


def chart(
    title: str,
    curves: Curves,
    axis: Axis,
    room: int,
    braille: bool,
    *,
    factor: float = 1.0,
    height: int = 10,
    over: str = "step",
    across: Axis = "linear",
) -> list[Text]:
    """Return a chart under its title, and below it what it is over and which curve is which."""
    key = Text(f"by {over}: ", "dim")
    for index, name in enumerate(curves):
        style = COLOURS[index % len(COLOURS)]
        key.append("━ " if braille else f"{MARKS[index % len(MARKS)]} ", style)
        key.append(f"{name}  ")
    lines = line_chart(curves, axis, room, height, factor=factor, braille=braille, across=across)
    lines = [*([Text(title, "bold")] if title else []), *lines, key]
    for line in lines:
        line.rstrip()
    return lines


def in_two_columns(charts: Sequence[Sequence[Text]], room: int) -> list[Text]:
    """Return charts of `room` columns two by two beside one another, with an empty line above each pair."""
    lines = []
    for pair in zip_longest(charts[::2], charts[1::2], fillvalue=list[Text]()):
        lines.append(Text(""))
        for first, second in zip_longest(*pair, fillvalue=Text("")):
            line = first.copy()
            line.append(" " * (room + BETWEEN - line.cell_len))
            lines.append(line.append_text(second))
    return lines
