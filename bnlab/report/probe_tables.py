"""Tables of a report in sections: figures that tell 0 from nearly 0, bars, columns that fold, notes in rows."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from bnlab.report.chart import Scale
from bnlab.report.columns import GAP, Column, aligned, fold, table_width
from bnlab.report.console import Terminal
from bnlab.report.figures import MISSING, Cell, decimals_for, number, significant
from bnlab.report.table import wrapped

if TYPE_CHECKING:
    from bnlab.interval import Interval

_BAR_RANK = 9  # bars give way first
_VANISHING = 3e-4  # estimates below it are written with powers of ten: four decimals would leave one digit


# ---------------------------------------------------------------- figures


def small(value: float | None, *, signed: bool = False) -> str:
    """Return a figure in three significant digits, two with a power of ten below 0.001; `0` is exactly 0."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return _power(value, signed)
    digits = 2 - math.floor(math.log10(abs(value)))
    return number(value, min(max(digits, 0), 5), signed=signed)


def percent(share: float) -> str:
    """Return a share in percent with two decimals; `0` is exactly 0."""
    points = 100 * share
    return number(points, 2) if round(points, 2) else small(points)


def estimates(found: Sequence[Interval], factor: float = 1.0, *, signed: bool = False, least: int = 0) -> list[str]:
    """Return a column of values times `factor` with their intervals, aligned; `0` is exactly 0, also at its ends.

    The column has the decimals that its typical interval supports, and `least` of them; an estimate that would vanish
    has powers of ten.
    """
    halves = [each.half * factor for each in found]
    decimals = max(least, decimals_for([each.value * factor for each in found], halves))
    return aligned([_estimate(each.value * factor, each.half * factor, decimals, signed) for each in found])


def with_sum(terms: Sequence[Interval], total: Interval, factor: float = 1.0, *, least: int = 0) -> list[str]:
    """Return the column of `terms`, their sum, and `total`; the sum has the digits of the total, and no interval."""
    *cells, last = estimates([*terms, total], factor, signed=True, least=least)
    head = last.split()[0]
    value = factor * sum(term.value for term in terms)
    as_it_is = head in ("0", MISSING) or "e" in head
    text = small(value, signed=True) if as_it_is else number(value, len(head.partition(".")[2]), signed=True)
    return [*cells, " " * (last.index(head) + len(head) - len(text)) + text, last]


def _estimate(value: float, half: float, decimals: int, signed: bool) -> Cell:
    if half == math.inf:
        return Cell("0" if value == 0 else significant(value))
    if value == 0 and half == 0:
        return Cell("0")
    if max(abs(value), half) < _VANISHING:
        return Cell(small(value, signed=signed), f"± {small(half)}")
    # never a false ± 0.00
    return Cell(
        number(value, decimals, signed=signed), f"± {number(max(half, 10.0**-decimals), decimals) if half else '0'}"
    )


def _power(value: float, signed: bool) -> str:
    mantissa, _, power = f"{value:{'+' if signed else ''}.1e}".partition("e")
    return f"{mantissa}e{int(power)}"


# ---------------------------------------------------------------- bars


def drawn(draw: Callable[[int], list[str]], wide: int, narrow: int, title: str = "") -> Column:
    """Return a column of bars that `draw` makes of a width, in one of two widths."""
    cells = draw(wide)
    return Column(title, cells, short=draw(narrow), left=True, rank=_BAR_RANK, styles=["cyan"] * len(cells))


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


def whiskers(found: Sequence[Interval], scale: Scale, width: int, out: Terminal) -> list[str]:
    """Return a mark for each value on `scale`, with a line over its interval."""
    mark, line = ("■", "─") if out.unicode else ("#", "-")

    def place(value: float) -> int:
        return round(scale.height(value) * (width - 1))

    rows = []
    for each in found:
        row = [" "] * width
        if math.isfinite(each.value):
            low, high = (each.value if end is None else end for end in (each.low, each.high))
            for column in range(place(low), place(high) + 1):
                row[column] = line
            row[place(each.value)] = mark
        rows.append("".join(row))
    return rows


# ---------------------------------------------------------------- tables


def table(
    columns: Sequence[Column],
    out: Terminal,
    *,
    notes: Mapping[int, str] = {},
    rules: Collection[int] = (),
    styles: Mapping[int, str] = {},
) -> list[Text]:
    """Return the lines of a table as wide as the console allows; the columns of the highest rank give way first.

    `notes` take the place of a row's figures, `rules` are the rows that a line stands above, `styles` those of rows.
    Where the columns of rank 0 alone are too wide, each row becomes a few lines.
    """
    shown = [_in(out, column) for column in columns]
    kept, _ = fold(shown, out.width)
    if kept is None:
        return list(_blocks(shown, out, notes, styles))
    tallest = max(len(column.header) for column in kept)
    heads = [[""] * (tallest - len(column.header)) + column.header for column in kept]
    lines = [Text(_line(kept, texts), "dim", no_wrap=True) for texts in zip(*heads, strict=True)]
    rule = Text(("─" if out.unicode else "-") * table_width(kept), "dim", no_wrap=True)
    lines.append(rule)
    margin = kept[0].width + GAP
    for number_ in range(len(kept[0].cells)):
        lines += [rule] if number_ in rules else []
        if number_ in notes:
            said = textwrap.wrap(out.show(notes[number_]), max(out.width - margin, 10))
            names = [kept[0].cells[number_], *[""] * (len(said) - 1)]
            lines += [
                Text(f"{name:<{margin}}{text}", "dim", no_wrap=True) for name, text in zip(names, said, strict=True)
            ]
            continue
        line = Text(no_wrap=True, style=styles.get(number_, ""))
        for place, column in enumerate(kept):
            line.append(" " * GAP if place else "")
            line.append(_padded(column, column.cells[number_]), column.styles[number_] if column.styles else "")
        line.rstrip()
        lines.append(line)
    return lines


def joined(parts: Sequence[str], out: Terminal, style: str) -> list[Text]:
    """Return the parts on as many lines as it takes, broken between parts where they are not too long themselves."""
    lines = wrapped([out.show(part) for part in parts], out.width, " · " if out.unicode else " | ")
    return [Text(piece, style, no_wrap=True) for line in lines for piece in textwrap.wrap(line, out.width) or [""]]


def shortened(text: str, width: int) -> str:
    """Return `text` in at most `width` columns, cut in the middle: both ends of a layer's name tell it apart."""
    if cell_len(text) <= width:
        return text
    front = (width - 1) // 2
    return f"{text[:front]}…{text[len(text) - (width - 1 - front) :]}"


def _in(out: Terminal, column: Column) -> Column:
    """Return the column in the console's character set."""
    return replace(column, title=out.show(column.title), cells=[out.show(cell) for cell in column.cells])


def _blocks(
    columns: Sequence[Column], out: Terminal, notes: Mapping[int, str], styles: Mapping[int, str]
) -> Iterator[Text]:
    room = max(out.width - 2, 10)
    for row, name in enumerate(columns[0].cells):
        yield Text(name, "dim" if row in notes else styles.get(row, "") or "bold")
        figures = [
            f"{c.title} {' '.join(c.cells[row].split())}" for c in columns[1:] if c.title and c.cells[row].strip()
        ]
        said = [out.show(notes[row])] if row in notes else wrapped(figures, room, ", ")
        yield from (Text("  " + line, "dim") for text in said for line in textwrap.wrap(text, room))


def _line(columns: Sequence[Column], texts: Sequence[str]) -> str:
    return (" " * GAP).join(_padded(column, text) for column, text in zip(columns, texts, strict=True)).rstrip()


def _padded(column: Column, text: str) -> str:
    margin = " " * (column.width - cell_len(text))
    return text + margin if column.left else margin + text
