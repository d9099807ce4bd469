"""Columns of bars: figures as lengths of block characters, `#` where the stream has only ASCII."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bnlab.report.figures import Cell, on_axis
from bnlab.report.table import Column

if TYPE_CHECKING:
    from bnlab.interval import Interval
    from bnlab.report.chart import Scale
    from bnlab.report.console import Terminal

_RANK = 9  # bars give way first
_MOST_TICKS = 4  # of a ruler
_EIGHTHS = " ▏▎▍▌▋▊▉"


def bar_column(title: str, draw: Callable[[int], Sequence[Cell | str]], wide: int, narrow: int) -> Column:
    """Return a column of bars that `draw` makes of a width, in one of two widths."""
    cells = draw(wide)
    return Column(title, cells, short=draw(narrow), left=True, rank=_RANK, styles=["cyan"] * len(cells))


def signed_bars(values: Sequence[float], width: int, out: Terminal) -> list[str]:
    """Return bars to the left and right of a line in the middle, the longest for the value farthest from 0."""
    side = (width - 1) // 2
    block, line = ("█", "│") if out.unicode else ("#", "|")
    most = max((abs(v) for v in values if math.isfinite(v)), default=0.0) or 1.0
    lengths = [round(abs(v) / most * side) if math.isfinite(v) else 0 for v in values]
    return [
        f"{block * n if v < 0 else '':>{side}}{line}{block * n if v > 0 else '':<{side}}"
        for v, n in zip(values, lengths, strict=True)
    ]


def bars(values: Sequence[float], width: int, out: Terminal) -> list[str]:
    """Return bars from the left for values of 0 and more; what is not 0 has a bar."""
    block = "█" if out.unicode else "#"
    most = max((v for v in values if math.isfinite(v)), default=0.0) or 1.0
    return [block * max(round(v / most * width), int(v > 0)) if math.isfinite(v) else "" for v in values]


def fine_bar(share: float, width: int, out: Terminal) -> str:
    """Return a bar of `share` of `width` columns, to an eighth of a column."""
    if not out.unicode:
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def whiskers(values: Sequence[Interval], scale: Scale, width: int, out: Terminal) -> list[str]:
    """Return a mark for each value on `scale`, with a line over its interval."""
    mark, line = ("■", "─") if out.unicode else ("#", "-")

    def place(value: float) -> int:
        return round(scale.height(value) * (width - 1))

    rows = []
    for each in values:
        row = [" "] * width
        if math.isfinite(each.value):
            low, high = (each.value if end is None else end for end in (each.low, each.high))
            for column in range(place(low), place(high) + 1):
                row[column] = line
            row[place(each.value)] = mark
        rows.append("".join(row))
    return rows


def arrow(out: Terminal) -> str:
    """Return what points at a place on a scale."""
    return "▲" if out.unicode else "^"


def ruler(scale: Scale, width: int, out: Terminal, *, marks: Sequence[float] = (), factor: float = 1.0) -> str:
    """Return what stands below marks on `scale`: an arrow at each of `marks`, and round values where there is room."""
    line = " " * width

    def put(first: int, text: str) -> bool:
        nonlocal line
        if first < 0 or first + len(text) > width or line[max(first - 1, 0) : first + len(text) + 1].strip():
            return False
        line = line[:first] + text + line[first + len(text) :]
        return True

    def place(value: float) -> int:
        return round(scale.height(value) * (width - 1))

    for number, mark in enumerate(marks):
        at, text = place(mark), f"{mark * factor:g}"
        sides = [(at, arrow(out) + text), (at - len(text), text + arrow(out))]  # its value to the right, or the left
        left_first = number == 0 and len(marks) > 1
        any(put(*side) for side in (sides[::-1] if left_first else sides)) or put(at, arrow(out))
    for tick in scale.ticks(_MOST_TICKS):
        text = on_axis(tick * factor)
        put(min(max(place(tick) - (len(text) - 1) // 2, 0), width - len(text)), text)
    return line.rstrip()
