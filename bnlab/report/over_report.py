"""A comparison over the levels of a number: a matrix with the slope of each arm, and a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from bnlab.compare.arms import short_names
from bnlab.compare.over import Levels
from bnlab.compare.result import Comparison
from bnlab.interval import Interval
from bnlab.metrics import metrics
from bnlab.report.compare_formats import commented, difference_values, document, listed
from bnlab.report.compare_report import curve_axis, framed
from bnlab.report.console import Terminal
from bnlab.report.curves import chart
from bnlab.report.figures import Cell, difference_cells, is_clear
from bnlab.report.pivot_report import (
    lines_csv,
    matrix_columns,
    matrix_document,
    matrix_grid,
    matrix_lines,
    matrix_title,
)
from bnlab.report.rows import aligned_lines, escaped, markdown_table
from bnlab.report.table import Column, draw, joined
from bnlab.report.verdicts import baseline_name

WIDEST_CHART = 76  # columns


def over_table(found: Sequence[Levels], out: Terminal) -> Group:
    """Return what to print: a table a data set, and below it a chart."""
    shown: list[Text] = []
    for levels in found:
        shown += [Text("")] if shown else []
        slopes = [Column(title, cells, key=title, group="slope") for title, cells in _slope_columns(levels)]
        table = draw([*matrix_columns(levels), *slopes], out, split=True).lines
        body = [Text(""), *joined([matrix_title(levels)], out), Text(""), *table, Text(""), *_chart(levels, out)]
        shown += framed(levels.section, body, _legend(levels), levels.section.notes, out)
    return Group(*shown)


def _slope_columns(levels: Levels) -> list[tuple[str, list[Cell]]]:
    """Return titles and cells; none where there is no slope."""
    if levels.per is None:
        return []
    metric, rows = metrics[levels.section.main], levels.section.rows
    columns = [(f"per {levels.per}", difference_cells(levels.slopes, metric.scale, 2))]
    if any(levels.differences):
        cells = difference_cells(levels.differences, metric.scale, 2)
        against = [Cell("", "baseline") if row.is_baseline else cell for row, cell in zip(rows, cells, strict=True)]
        columns.append((f"vs {baseline_name(levels.section)}", against))
    return columns


def _legend(levels: Levels) -> list[str]:
    """Return what the columns of slopes mean."""
    if levels.per is None:
        return []
    metric, key = metrics[levels.section.main], levels.keys[1]
    unit = "points" if metric.unit == "%" else metric.unit or metric.name
    step = f"doubling of {key}" if levels.per == "doubling" else f"1 of {key}"
    legend = [f"per {levels.per}: slope, {unit} per {step}, least squares within each seed"]
    if any(map(is_clear, filter(None, levels.differences))):
        name = baseline_name(levels.section)
        legend.append(f"*: the slope differs from that of {name} at the 5% level, paired by seed, Holm-corrected")
    return legend


def _chart(levels: Levels, out: Terminal) -> list[Text]:
    """Return the figures of each arm over the levels; nothing where these are no numbers, or there are fewer than 2."""
    metric, key = metrics[levels.section.main], levels.keys[1]
    places = [float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else math.nan for v in levels.columns]
    curves = {}
    for arm, cells in zip(levels.section.rows, levels.cells, strict=True):
        points = [(x, cell.metrics[metric.name].value) for x, cell in zip(places, cells, strict=True) if cell]
        points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        if len(points) > 1:
            curves[out.show(arm.label)] = ([x for x, _ in points], [y for _, y in points])
    if not curves:
        return []
    is_log = levels.per == "doubling"
    over = f"{short_names([key])[key]}{' (log scale)' if is_log else ''}"
    axis = curve_axis(metric) if metric.kind == "mean" else "linear"  # the curve of a time is that of an accuracy
    how = {"error": " (log scale of the error)", "log": " (log scale)", "linear": ""}[axis]
    lines = chart(
        out.show(f"{metric.title}{' %' if metric.unit == '%' else ''}{how}"),
        curves,
        axis,
        min(out.width, WIDEST_CHART),
        out.unicode and out.coloured,
        factor=metric.scale,
        over=out.show(over),
        across="log" if is_log else "linear",
    )
    return [*lines, Text("")]


# ---------------------------------------------------------------- for programs


def as_plain(found: Sequence[Levels], comparison: Comparison) -> str:
    """Return aligned text to grep, as of a matrix, with slopes and p."""
    return "\n".join(commented(each.section, aligned_lines(*_grid(each)), *_titles(each)) for each in found)


def as_markdown(found: Sequence[Levels], comparison: Comparison) -> str:
    """Return one GitHub table a data set, as of a matrix, with slopes and p."""
    parts: list[str] = []
    for each in found:
        titles, rows = _grid(each)
        titles = list(map(escaped, titles))
        table = markdown_table(titles, [list(map(escaped, row)) for row in rows], titles[1:])
        parts += listed(each.section, [*map(escaped, _titles(each)), table])
    return "\n\n".join(parts) + "\n" if parts else ""


def as_csv(found: Sequence[Levels], comparison: Comparison) -> str:
    """Return one line an arm, as of a matrix, with `slope per`, `slope`, `slope difference`, their bounds and p."""
    return lines_csv(
        line | slope
        for number, each in enumerate(found, 1)
        for line, slope in zip(matrix_lines(each, number), map(_flat, _slope_values(each)), strict=True)
    )


def as_json(found: Sequence[Levels], comparison: Comparison) -> str:
    """Return JSON as of a matrix, with "slope_per" ("doubling", "1" or null) and one object an arm in "slopes".

    That is {"arm", "is_baseline", "slope": {"value", "low", "high", "n"} or null, "difference": the same with "p", of
    this slope from the baseline's, or null}, in the metric's unit.
    """
    return document(
        [matrix_document(each) | {"slope_per": each.per, "slopes": _slope_values(each)} for each in found], comparison
    )


OVER_FORMATS: Mapping[str, Callable[[Sequence[Levels], Comparison], str]] = {
    "plain": as_plain,
    "csv": as_csv,
    "json": as_json,
    "md": as_markdown,
}


def _titles(levels: Levels) -> list[str]:
    return [matrix_title(levels), *_legend(levels)]


def _grid(levels: Levels) -> tuple[list[str], list[list[str]]]:
    titles, rows = matrix_grid(levels)
    slopes = _slope_columns(levels)
    ps = ["" if d is None or d.p is None else f"{d.p:.2g}" for d in levels.differences]
    for row, *cells in zip(rows, *(map(str, cells) for _, cells in slopes), ps, strict=True):
        row += cells[: len(slopes) + (len(slopes) > 1)]
    return [*titles, *(title for title, _ in slopes), *(["p"] if len(slopes) > 1 else [])], rows


def _slope_values(levels: Levels) -> list[dict[str, Any]]:
    metric = metrics[levels.section.main]

    def values(slope: Interval | None) -> dict[str, Any] | None:
        if slope is None:
            return None
        shown = difference_values(slope, metric)
        return {"value": shown.pop("difference"), **shown}

    return [
        {
            "arm": row.arm,
            "is_baseline": row.is_baseline,
            "per": levels.per,
            "slope": values(own),
            "difference": values(d),
        }
        for row, own, d in zip(levels.section.rows, levels.slopes, levels.differences, strict=True)
    ]


def _flat(slope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a slope as columns."""
    line: dict[str, Any] = {"slope per": slope["per"]}
    for name, values in (("slope", slope["slope"] or {}), ("slope difference", slope["difference"] or {})):
        line |= {name: values.get("value"), **{f"{name} {part}": values.get(part) for part in ("low", "high", "n")}}
    return line | {"p": (slope["difference"] or {}).get("p")}
