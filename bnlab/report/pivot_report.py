"""A comparison as matrices: one key down, one across, one metric in the cells.

The best cell of each column is bold; swap rows and columns to have the best of each row. Every format shows the same
cells: the figure with its interval, the finished runs behind it, and the setting where one was chosen for each arm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rich.console import Group
from rich.text import Text

from bnlab.compare.arms import MISSING, short_names, text_of
from bnlab.compare.pivot import Matrix, matrices
from bnlab.compare.result import Comparison, Row
from bnlab.interval import Interval
from bnlab.metrics import Metric, metrics
from bnlab.report import figures
from bnlab.report.compare_formats import commented, document, estimate_values, listed
from bnlab.report.compare_report import best_styles, framed, table_title
from bnlab.report.console import Terminal, clean
from bnlab.report.figures import Cell, estimate_cells
from bnlab.report.rows import SCHEMA, aligned_lines, csv_text, escaped, markdown_table
from bnlab.report.table import Column, draw, joined

_UNIT_WORDS = {"s": "seconds", "1/s": "images/s"}  # how a title tells its unit, where it does so by another word


def pivot_table(comparison: Comparison, out: Terminal) -> Group:
    """Return what to print: a matrix a section, of so many columns beside one another as the terminal holds."""
    shown: list[Text] = []
    for matrix in matrices(comparison):
        shown += [Text("")] if shown else []
        table = draw(matrix_columns(matrix), out, split=True).lines
        body = [Text(""), *joined([matrix_title(matrix)], out), Text(""), *table, Text("")]
        shown += framed(matrix.section, body, [], matrix.section.notes, out)
    return Group(*shown)


def matrix_columns(matrix: Matrix) -> list[Column]:
    """Return the names of the rows, then a column for each value across."""
    metric = metrics[matrix.section.main]
    names = short_names(matrix.keys)
    title = " \\ ".join(names[key] for key in matrix.keys)
    down = names[matrix.keys[0]]
    columns = [Column(title, list(map(_value, matrix.rows)), key=down, left=True, is_name=True)]
    cells, beside = _cells(matrix), _beside(matrix)
    for j, value in enumerate(matrix.columns):
        column = [
            replace(row[j], below=(remark[j],) if remark[j] else ()) for row, remark in zip(cells, beside, strict=True)
        ]
        styles = best_styles([_estimate(row[j], metric) for row in matrix.cells], metric)
        columns.append(Column(_value(value), column, styles=styles))
    return columns


# ---------------------------------------------------------------- for programs


def as_plain(comparison: Comparison) -> str:
    """Return aligned text to grep: `#` before all that is no row, the finished runs in every cell."""
    return "\n".join(
        commented(m.section, aligned_lines(*matrix_grid(m)), matrix_title(m)) for m in matrices(comparison)
    )


def as_markdown(comparison: Comparison) -> str:
    """Return one GitHub table a matrix, under its header and title as lines of text, with the notes as a list."""
    parts: list[str] = []
    for matrix in matrices(comparison):
        titles, rows = matrix_grid(matrix)
        titles = list(map(escaped, titles))
        table = markdown_table(titles, [list(map(escaped, row)) for row in rows], titles[1:])
        parts += listed(matrix.section, [escaped(matrix_title(matrix)), table])
    return "\n\n".join(parts) + "\n" if parts else ""


def as_csv(comparison: Comparison) -> str:
    """Return one line a row of each matrix; a column value has its figure, its interval, `n` finished of `runs` runs.

    The columns are `KEY=VALUE`, then the same with ` low`, ` high`, ` n`, ` runs` and ` best KEY` of a chosen setting.
    """
    return lines_csv(
        line for number, matrix in enumerate(matrices(comparison), 1) for line in matrix_lines(matrix, number)
    )


def matrix_lines(matrix: Matrix, number: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the matrix of the section `number` as lines of a CSV, by title."""
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
        yield line


def lines_csv(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return a CSV of all titles that any line has."""
    lines = list(lines)
    titles = list(dict.fromkeys(name for line in lines for name in line))
    return csv_text(titles, ([line.get(name) for name in titles] for line in lines))


def as_json(comparison: Comparison) -> str:
    """Return JSON: of one matrix the object itself, of several `{"schema": 1, "sections": [...]}` of such objects.

    A matrix is {"schema", "metric", "row_key", "column_key", "rows" and "columns" (values), "cells", "settings",
    "environments", "target", "notes"}, the whole adds "skipped". A cell is a metric as in a comparison, with "status"
    and "best", or null where there is no run.
    """
    return document([matrix_document(matrix) for matrix in matrices(comparison)], comparison)


PIVOT_FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "plain": as_plain,
    "csv": as_csv,
    "json": as_json,
    "md": as_markdown,
}


def matrix_document(matrix: Matrix) -> dict[str, Any]:
    """Return what JSON has of a matrix."""
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


def matrix_grid(matrix: Matrix) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of text, each cell on one line."""
    rows = []
    for value, cells, beside in zip(matrix.rows, _cells(matrix), _beside(matrix, always=True), strict=True):
        texts = (" ".join(f"{cell} {remark}".split()) for cell, remark in zip(cells, beside, strict=True))
        rows.append([_value(value), *texts])
    return [clean(matrix.keys[0]), *map(_value, matrix.columns)], rows


# ---------------------------------------------------------------- cells


def matrix_title(matrix: Matrix) -> str:
    """Return what is in the cells, and by which keys."""
    metric, (down, across) = metrics[matrix.section.main], matrix.keys
    title = table_title(metric, matrix.section)
    is_told = metric.unit in ("", "%") or _UNIT_WORDS.get(metric.unit, metric.unit) in title.split()
    return f"{title}{'' if is_told else f' ({metric.unit})'} by {down} (down) and {across} (across)"


def _cells(matrix: Matrix) -> list[list[Cell]]:
    """Return the figures, all with the same number of decimals, for they are of one metric."""
    metric = metrics[matrix.section.main]
    estimates = [_estimate(row, metric) for cells in matrix.cells for row in cells]
    flat = estimate_cells(estimates, metric.scale, whole=metric.is_whole)
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
