"""A comparison as matrices: one key down, one across, one metric in the cells.

The best cell of each column is bold; swap rows and columns to have the best of each row. Every format shows the same
cells: the figure with its interval, the finished runs behind it, and the setting where one was chosen for each arm.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from bnlab.compare.arms import MISSING, short_names, text_of
from bnlab.compare.pivot import Matrix, matrices
from bnlab.compare.result import Comparison, Row
from bnlab.interval import Interval
from bnlab.metrics import Metric, metrics
from bnlab.report import figures
from bnlab.report.columns import Column, aligned, best_styles, in_ascii, table_title, table_width
from bnlab.report.console import clean
from bnlab.report.figures import Cell, estimate_cells
from bnlab.report.formats import SCHEMA, document, escaped, estimate_values, inert
from bnlab.report.heading import heading
from bnlab.report.table import NARROWEST, blocks, framed, interval_sign, table_lines

_UNIT_WORDS = {"s": "seconds", "1/s": "images/s"}  # how a title tells its unit, where it does so by another word


def pivot_table(comparison: Comparison, *, width: int, unicode: bool = True) -> Group:
    """Return what to print: a matrix a section, of so many columns beside one another as the terminal holds."""
    shown: list[RenderableType] = []
    for matrix in matrices(comparison):
        shown += [Text("")] if shown else []
        columns = _columns(matrix)
        columns = columns if unicode else [in_ascii(column) for column in columns]
        down = clean(short_names(matrix.keys)[matrix.keys[0]])
        title = [Text(""), Text(clean(_title(matrix)))]
        body = [*title, *_body(columns, down, width, unicode)]
        notes = list(map(clean, matrix.section.notes))
        shown += framed(matrix.section, body, interval_sign(matrix.section, columns), notes, width, unicode)
    return Group(*shown)


def _columns(matrix: Matrix) -> list[Column]:
    metric = metrics[matrix.section.main]
    names = short_names(matrix.keys)
    title = clean(" \\ ".join(names[key] for key in matrix.keys))
    columns = [Column(title, [_value(value) for value in matrix.rows], left=True, is_arm=True)]
    cells = _cells(matrix)
    beside = _beside(matrix)
    for j, value in enumerate(matrix.columns):
        texts = aligned([row[j] for row in cells])
        whole = [f"{text}\n{remark[j]}".rstrip("\n") for text, remark in zip(texts, beside, strict=True)]
        styles = best_styles([_estimate(row[j], metric) for row in matrix.cells], metric)
        columns.append(Column(_value(value), whole, styles=styles))
    return columns


def _body(columns: Sequence[Column], down: str, width: int, unicode: bool) -> list[RenderableType]:
    """Return the matrix, in parts below one another where it is too wide; where a column is, a block a row."""
    first, *rest = columns
    if width < NARROWEST or any(table_width([first, column]) > width for column in rest):
        return blocks([replace(first, title=down), *rest], width)
    body: list[RenderableType] = []
    while rest:
        count = 1
        while count < len(rest) and table_width([first, *rest[: count + 1]]) <= width:
            count += 1
        body += [Text(""), *table_lines([first, *rest[:count]], "─" if unicode else "-")]
        rest = rest[count:]
    return [*body, Text("")]


def as_plain(comparison: Comparison) -> str:
    """Return aligned text to grep: `#` before all that is no row, the finished runs in every cell."""
    lines: list[str] = []
    for matrix in matrices(comparison):
        table = _grid(matrix)
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines += ["# " + " · ".join(map(clean, heading(matrix.section))), f"# {clean(_title(matrix))}"]
        lines += ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        lines += [f"# {clean(note)}" for note in matrix.section.notes] + [""]
    return "\n".join(lines[:-1]) + "\n" if lines else ""


def as_markdown(comparison: Comparison) -> str:
    """Return one GitHub table a matrix, under its header and title as lines of text, with the notes as a list."""
    parts: list[str] = []
    for matrix in matrices(comparison):
        titles, *rows = _grid(matrix)
        lines = [list(map(escaped, titles)), ["---", *["---:"] * (len(titles) - 1)], *(map(escaped, r) for r in rows)]
        parts += [escaped(" · ".join(map(clean, heading(matrix.section)))), escaped(clean(_title(matrix)))]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if matrix.section.notes:
            parts.append("\n".join(f"- {escaped(clean(note))}" for note in matrix.section.notes))
    return "\n\n".join(parts) + "\n" if parts else ""


def as_csv(comparison: Comparison) -> str:
    """Return one line a row of each matrix; a column value has its figure, its interval, `n` finished of `runs` runs.

    The columns are `KEY=VALUE`, then the same with ` low`, ` high`, ` n`, ` runs` and ` best KEY` of a chosen setting.
    """
    found = matrices(comparison)
    lines: list[dict[str, Any]] = []
    for number, matrix in enumerate(found, 1):
        metric = metrics[matrix.section.main]
        row_key, column_key = matrix.keys
        for value, cells in zip(matrix.rows, matrix.cells, strict=True):
            line = {"section": number, "metric": metric.name, "unit": metric.unit, row_key: _plain(value)}
            for across, row in zip(matrix.columns, cells, strict=True):
                name = f"{column_key}={_plain(across)}"
                known = estimate_values(row.metrics[metric.name], metric) if row else {}
                line[name] = known.get(known.get("kind", ""))
                line |= {f"{name} {bound}": known.get(bound) for bound in ("low", "high")}
                line |= {f"{name} n": row.n if row else 0, f"{name} runs": row.num_runs if row else 0}
                line |= {f"{name} best {key}": row.best.get(key) if row else None for key in matrix.section.chosen}
            lines.append(line)
    titles = list(dict.fromkeys(name for line in lines for name in line))
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(map(inert, titles))
    writer.writerows([inert(line.get(name)) for name in titles] for line in lines)
    return target.getvalue()


def as_json(comparison: Comparison) -> str:
    """Return JSON: of one matrix the object itself, of several `{"schema": 1, "sections": [...]}` of such objects.

    A matrix is {"schema", "metric", "row_key", "column_key", "rows" and "columns" (values), "cells", "settings",
    "environments", "target", "notes"}, the whole adds "skipped". A cell is a metric as in a comparison, with "status"
    and "best", or null where there is no run.
    """
    return document([_document(matrix) for matrix in matrices(comparison)], comparison)


PIVOT_FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "plain": as_plain,
    "csv": as_csv,
    "json": as_json,
    "md": as_markdown,
}


def _document(matrix: Matrix) -> dict[str, Any]:
    section, metric = matrix.section, metrics[matrix.section.main]
    return {
        "schema": SCHEMA,
        "metric": metric.name,
        "row_key": matrix.keys[0],
        "column_key": matrix.keys[1],
        "rows": [None if value is MISSING else value for value in matrix.rows],
        "columns": [None if value is MISSING else value for value in matrix.columns],
        "cells": [
            [
                row and {**estimate_values(row.metrics[metric.name], metric), "status": row.states, "best": row.best}
                for row in cells
            ]
            for cells in matrix.cells
        ],
        "settings": section.settings,
        "environments": section.environments,
        "target": section.target,
        "notes": section.notes,
    }


def _grid(matrix: Matrix) -> list[list[str]]:
    """Return title and rows of text, each cell on one line."""
    lines = [[clean(matrix.keys[0]), *map(_value, matrix.columns)]]
    for value, cells, beside in zip(matrix.rows, _cells(matrix), _beside(matrix, always=True), strict=True):
        texts = (" ".join(f"{cell} {remark}".split()) for cell, remark in zip(cells, beside, strict=True))
        lines.append([_value(value), *texts])
    return lines


def _title(matrix: Matrix) -> str:
    metric, (down, across) = metrics[matrix.section.main], matrix.keys
    title = table_title(metric, matrix.section)
    is_told = metric.unit in ("", "%") or _UNIT_WORDS.get(metric.unit, metric.unit) in title.split()
    return f"{title}{'' if is_told else f' ({metric.unit})'} by {down} (down) and {across} (across)"


def _cells(matrix: Matrix) -> list[list[Cell]]:
    """Return the figures, all with the same number of decimals, for they are of one metric."""
    metric = metrics[matrix.section.main]
    estimates = [_estimate(row, metric) for cells in matrix.cells for row in cells]
    flat = estimate_cells(estimates, metric.scale, whole=metric.unit == "steps")
    across = len(matrix.columns)
    return [flat[i : i + across] for i in range(0, len(flat), across)]


def _beside(matrix: Matrix, *, always: bool = False) -> list[list[str]]:
    """Return what stands below each figure: `n=3` or `1/3 diverged`, and a chosen setting.

    Where every cell has the same number of seeds, all with a figure, the header says it, and only `always` repeats it.
    """
    names = short_names(matrix.section.chosen)
    arms = [row for cells in matrix.cells for row in cells if row]
    measured = {row.metrics[matrix.section.main].n for row in arms}
    counts = measured | {row.num_seeds for row in arms}
    usual = counts.pop() if len(counts) == 1 and counts != {1} and not always else None

    def remark(row: Row | None) -> str:
        if row is None:
            return ""
        chosen = [f"{name} {text_of(row.best[key])}" for key, name in names.items() if key in row.best]
        n = row.metrics[matrix.section.main].n  # seeds, of which `--by` may pool several runs
        lost = [f"{k}/{row.num_runs} {state}" for state, k in row.states.items() if state != "done"]
        count = [f"n={n}"] if n != usual and not (lost and n == row.n) else []
        return clean(", ".join([*count, *lost, *chosen]))

    return [[remark(row) for row in cells] for cells in matrix.cells]


def _estimate(row: Row | None, metric: Metric) -> Interval | None:
    return row.metrics.get(metric.name) if row else None


def _plain(value: object) -> str:
    return "" if value is MISSING else text_of(value)


def _value(value: object) -> str:
    return figures.MISSING if value is MISSING else clean(text_of(value))
