"""Curves in a terminal: a sparkline of block characters and a line chart of braille dots.

Own code, because bnlab needs two forms of one scale: accuracies near 1 are drawn on the logarithm of the error, so that
98% and 99% stay apart, and a chart library (plotext) has no such axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text

from bnlab.report.figures import number, significant, small

BLOCKS = "▁▂▃▄▅▆▇█"
COLOURS = ("cyan", "yellow", "magenta", "green", "red", "blue")
MARKS = "*+ox#@"  # one a series where there is no colour or no Unicode
_SMALLEST_ERROR = 1e-4  # one image of the 10,000 of a test set
_SMALLEST_TICK = 1e-300
_ENOUGH_TICKS = 3
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # braille bits by column, then row from the top
Axis = Literal["error", "log", "linear"]


@dataclass(frozen=True)
class Scale:
    """How a value becomes a height between `low` and `high`: linear, logarithmic, or by the logarithm of 1 - value."""

    axis: Axis
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float], axis: Axis) -> Scale:
        """Return the scale that spans the finite `values`; `log` needs them positive, else it becomes linear."""
        finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
        if axis == "log" and min(finite) <= 0:
            axis = "linear"
        return cls(axis, min(finite), max(finite))

    def height(self, value: float) -> float:
        """Return where `value` lies, 0 at `low` and 1 at `high`, held to that range."""
        low, high, here = (_FORWARD[self.axis](v) for v in (self.low, self.high, value))
        return 0.5 if high <= low else min(max((here - low) / (high - low), 0.0), 1.0)

    def at(self, height: float) -> float:
        """Return the value that lies at `height`."""
        low, high = _FORWARD[self.axis](self.low), _FORWARD[self.axis](self.high)
        return _BACKWARD[self.axis](low + height * (high - low))

    def ticks(self, most: int) -> list[float]:
        """Return round values within the scale, about `most` of them at most, apart as they stand on it."""
        if self.high <= self.low:
            return []
        ways = [self._apart(candidates, most) for candidates in self._round_values(most)]
        return next((ticks for ticks in ways if len(ticks) >= _ENOUGH_TICKS), max(ways, key=len))

    def _apart(self, candidates: Iterable[float], most: int) -> list[float]:
        found: list[float] = []
        for tick in candidates:
            is_apart = not found or self.height(tick) - self.height(found[-1]) > 1 / (most + 1)
            found += [tick] if is_apart and self.low <= tick <= self.high else []
        return found

    def _round_values(self, most: int) -> Iterator[list[float]]:
        """Yield rising round values: powers of ten, as they and between them, and evenly spaced ones."""
        if self.axis != "linear":
            ends = (1 - self.high, 1 - self.low) if self.axis == "error" else (self.low, self.high)
            first, last = (math.floor(math.log10(max(end, _SMALLEST_TICK))) for end in ends)
            for digits in ((1,), (1, 2, 5)) if self.axis == "log" else ((1, 2, 5),):
                steps = [m * 10.0**power for power in range(first, last + 1) for m in digits]
                yield sorted(1 - step for step in steps) if self.axis == "error" else steps
        least = (self.high - self.low) / most
        step = next(step for m in (1, 2, 5, 10) if (step := m * 10.0 ** math.floor(math.log10(least))) >= least)
        yield [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


_FORWARD: dict[Axis, Callable[[float], float]] = {
    "error": lambda v: -math.log(max(1 - v, _SMALLEST_ERROR)),
    "log": lambda v: math.log(max(v, 1e-300)),
    "linear": lambda v: v,
}
_BACKWARD: dict[Axis, Callable[[float], float]] = {
    "error": lambda h: 1 - math.exp(-h),
    "log": math.exp,
    "linear": lambda h: h,
}


def sparkline(values: Sequence[float], scale: Scale, width: int) -> str:
    """Return at most `width` block characters, the last for the last value; what is not finite reads `×`."""
    if len(values) > width:
        step = (len(values) - 1) / max(width - 1, 1)
        values = [values[len(values) - 1 - round(step * i)] for i in range(width)][::-1]
    return "".join(
        BLOCKS[min(int(scale.height(v) * len(BLOCKS)), len(BLOCKS) - 1)] if math.isfinite(v) else "×" for v in values
    )


def line_chart(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    axis: Axis,
    width: int,
    height: int = 10,
    *,
    factor: float = 1.0,
    braille: bool = True,
    across: Axis = "linear",
) -> list[Text]:
    """Return the lines of a chart of `curves` (name -> x, y), `width` columns wide with its labels.

    The ticks show the values times `factor`. Without `braille` each curve is drawn with its own mark of `*+ox#@`.
    """
    points = {name: [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)] for name, curve in curves.items()}
    everything = [point for curve in points.values() for point in curve]
    if not everything:
        return [Text("no finite values", "dim")]
    scale = Scale.over([y for _, y in everything], axis)
    wide = Scale.over([x for x, _ in everything], across)
    said = small if scale.axis == "log" and scale.low * factor < 1e-3 else significant
    spaces = max(round((height - 1) / 3), 1)
    rows = [round(i * (height - 1) / spaces) for i in range(spaces + 1)]  # the first and the last among them
    ticks = {row: said(scale.at(1 - (row + 0.5) / height) * factor) for row in rows}
    margin = max(map(len, ticks.values()))
    columns = max(width - margin - 2, 8)
    canvas = _Canvas(columns, height, braille)
    for index, curve in enumerate(points.values()):
        places = [(wide.height(x) if wide.high > wide.low else 0.0, scale.height(y)) for x, y in curve]
        canvas.draw(places, index)
    side = "┤" if braille else "|"
    lines = [
        Text.assemble(
            (f"{ticks.get(row, ''):>{margin}} {side if row in ticks else '│' if braille else '|'}", "dim"), line
        )
        for row, line in enumerate(canvas.lines())
    ]
    left, right = (number(x, 0) if float(x).is_integer() else significant(x) for x in (wide.low, wide.high))
    feet = f"{left}{right:>{max(columns - len(left), 0)}}"
    return [*lines, Text(" " * (margin + 2) + feet, "dim")]


class _Canvas:
    """A grid of cells of 2 x 4 dots; a cell takes the colour or mark of the curve drawn there last."""

    def __init__(self, columns: int, rows: int, braille: bool) -> None:
        self._columns, self._rows, self._braille = columns, rows, braille
        self._bits = [[0] * columns for _ in range(rows)]
        self._owner = [[0] * columns for _ in range(rows)]

    def draw(self, places: Sequence[tuple[float, float]], index: int) -> None:
        """Join `places`, each (x, y) within 0..1, by straight lines."""
        wide, high = self._columns * 2 - 1, self._rows * 4 - 1
        dots = [(x * wide, (1 - y) * high) for x, y in places]
        for (x0, y0), (x1, y1) in zip(dots, dots[1:] or dots, strict=False):
            steps = max(int(max(abs(x1 - x0), abs(y1 - y0))), 1)
            for k in range(steps + 1):
                self._dot(round(x0 + (x1 - x0) * k / steps), round(y0 + (y1 - y0) * k / steps), index)

    def _dot(self, x: int, y: int, index: int) -> None:
        self._bits[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
        self._owner[y // 4][x // 2] = index

    def lines(self) -> list[Text]:
        drawn = []
        for bits, owners in zip(self._bits, self._owner, strict=True):
            line = Text()
            for bit, owner in zip(bits, owners, strict=True):
                mark = chr(0x2800 + bit) if self._braille else MARKS[owner % len(MARKS)]
                line.append(mark if bit else " ", COLOURS[owner % len(COLOURS)] if bit else None)
            drawn.append(line)
        return drawn
