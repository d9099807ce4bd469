"""The comparison at a glance: one row an arm, as many columns as the terminal holds, and no figure ever cut.

The arm, how its runs ended, the main metric and the difference always stay; where they alone are too wide, or below 60
columns, each arm becomes a block of its own. What is marked or left out is said in the lines below the table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from bnlab.compare.result import Comparison, Section
from bnlab.metrics import metrics
from bnlab.report.columns import GAP, Column, baseline_name, curve_scale, fold, in_ascii, section_columns, table_width
from bnlab.report.console import clean, to_ascii
from bnlab.report.figures import is_clear, significant
from bnlab.report.heading import heading

NARROWEST = 60


def comparison_table(comparison: Comparison, *, width: int, unicode: bool = True, names: Sequence[str] = ()) -> Group:
    """Return what to print: a block a section; `names` are the metrics beside the main one, if not the usual ones."""
    shown: list[RenderableType] = []
    for section in comparison.sections:
        shown += [Text("")] if shown else []
        shown += _section(section, width, names, unicode)
    return Group(*shown)


def skipped_lines(comparison: Comparison) -> list[str]:
    """Return one line for each folder that could not be read, for stderr."""
    return [clean(f"{path}: unreadable ({reason})") for path, reason in comparison.skipped]


def _section(section: Section, width: int, names: Sequence[str], unicode: bool) -> list[RenderableType]:
    columns = section_columns(section, names)
    columns = columns if unicode else [in_ascii(column) for column in columns]
    kept, left_out = fold(columns, width)
    body: list[RenderableType]
    if kept is None or width < NARROWEST:
        kept, left_out, body = columns, [], blocks(columns, width)
    else:
        body = [Text(""), *table_lines(kept, "─" if unicode else "-"), Text("")]
    notes = [*_curve_note(section, kept), *_left_out(left_out), *map(clean, section.notes)]
    return framed(section, body, _legend(section, kept), notes, width, unicode)


def framed(
    section: Section,
    body: Sequence[RenderableType],
    legend: Sequence[str],
    notes: Sequence[str],
    width: int,
    unicode: bool,
) -> list[RenderableType]:
    """Return the section's header, `body`, what its signs mean, and the notes, each line as wide as there is room."""
    show = clean if unicode else to_ascii
    between = " · " if unicode else " | "
    lines: list[RenderableType] = []
    for note in notes:
        for number, line in enumerate(textwrap.wrap(show(note), max(width - 2, 20), break_long_words=False)):
            lines.append(Text(("  " if number else "· " if unicode else "- ") + line, "dim"))
    head = wrapped([show(clean(part)) for part in heading(section)], width, between)
    signs = wrapped([show(part) for part in legend], width, between)
    return [*(Text(line, "bold") for line in head), *body, *(Text(line, "dim") for line in signs), *lines]


def wrapped(parts: Sequence[str], width: int, between: str = " · ") -> list[str]:
    """Return the parts joined on as many lines as `width` asks for, broken between parts only."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1] + between + part) <= width:
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines


def table_lines(columns: Sequence[Column], rule: str) -> list[Text]:
    """Return the lines of the table; every width is known, so rich need not measure the cells again."""
    tallest = max(len(column.header) for column in columns)
    title = [[""] * (tallest - len(column.header)) + column.header for column in columns]
    lines = [Text(_line(columns, texts), "dim") for texts in zip(*title, strict=True)]
    lines.append(Text(rule * table_width(columns), "dim"))
    for number in range(len(columns[0].cells)):
        cells = [column.cells[number].split("\n") for column in columns]
        for depth in range(max(map(len, cells))):
            lines.append(_row(columns, [cell[depth] if depth < len(cell) else "" for cell in cells], number))
    return lines


def _row(columns: Sequence[Column], texts: Sequence[str], number: int) -> Text:
    line = Text(no_wrap=True)
    for column, text in zip(columns, texts, strict=True):
        line.append(" " * GAP if line else "")
        line.append(_padded(column, text), column.styles[number] if column.styles else "")
    line.rstrip()
    return line


def _line(columns: Sequence[Column], texts: Sequence[str]) -> str:
    return (" " * GAP).join(_padded(column, text) for column, text in zip(columns, texts, strict=True)).rstrip()


def _padded(column: Column, text: str) -> str:
    margin = " " * (column.width - cell_len(text))
    return text + margin if column.left else margin + text


def blocks(columns: Sequence[Column], width: int) -> list[RenderableType]:
    """Return each arm as a block: what names it, then one line a figure, or two where the figure would be cut."""
    figures = [column for column in columns if not column.is_arm]
    margin = max(cell_len(column.title) for column in figures)
    shown: list[RenderableType] = []
    for number in range(len(columns[0].cells)):
        name = " ".join(f"{column.title}={column.cells[number].strip()}" for column in columns if column.is_arm)
        shown += [Text(""), Text(name, "bold")]
        for column in figures:
            text = ", ".join(" ".join(line.split()) for line in column.cells[number].split("\n"))
            style = column.styles[number] if column.styles else ""
            if text and 2 + margin + 2 + cell_len(text) <= width:
                shown.append(Text.assemble((f"  {column.title:<{margin}}  ", "dim"), (text, style)))
            elif text:
                shown += [Text(f"  {column.title}", "dim"), Padding(Text(text, style), (0, 0, 0, 4), expand=False)]
    return [*shown, Text("")]


def _legend(section: Section, kept: Sequence[Column]) -> list[str]:
    """Return what the signs in the table mean, only those that are there."""
    parts = interval_sign(section, kept)
    if any(is_clear(d) for row in section.rows if (d := row.vs_baseline.get(section.main))):
        parts.append(f"*: differs from {baseline_name(section)} at the 5% level, paired by seed, Holm-corrected")
    return parts


def interval_sign(section: Section, columns: Sequence[Column]) -> list[str]:
    """Return what `±` means, where it stands in a cell."""
    over = "the rounds of a bench" if section.is_bench else "seeds"
    cells = [cell for column in columns for cell in column.cells]
    return [f"±: 95% interval over {over}"] if any("±" in cell or "+-" in cell for cell in cells) else []


def _curve_note(section: Section, kept: Sequence[Column]) -> list[str]:
    scale = curve_scale(section)
    if scale is None or all(column.name != "curve" for column in kept):
        return []
    metric = metrics[section.main]
    unit = " %" if metric.unit == "%" else ""
    how = {"error": " on a log scale of the error", "log": " on a log scale", "linear": ""}[scale.axis]
    low, high = (significant(value * metric.scale) + unit for value in (scale.low, scale.high))
    what = (metric.curve or metric.name).replace(".", " ")
    return [f"curve: {what}, ▁ {low} to █ {high}{how}, one axis for all rows"]


def _left_out(columns: Sequence[Column]) -> list[str]:
    names = ", ".join(column.name for column in columns if column.name in metrics)
    shown = [f"left out for width: {names} (--metric NAME, or a wider terminal, shows them)"] if names else []
    curve = any(column.name not in metrics for column in columns)  # no metric, so that none can be named for it
    return [*shown, "left out for width: the curve (a wider terminal shows it)"] if curve else shown
