"""The comparison at a glance: one row an arm, as many columns as the terminal holds.

The arm, how its runs ended, the main metric and the difference always stay. What is marked or left out is said in the
lines below the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Group
from rich.text import Text

from bnlab.compare.arms import short_names, text_of
from bnlab.compare.result import Comparison, Row, Section
from bnlab.interval import Interval
from bnlab.metrics import Metric, metrics
from bnlab.report.chart import Axis, Scale, sparkline
from bnlab.report.console import Terminal, clean
from bnlab.report.figures import (
    AT_ONCE,
    MISSING,
    Cell,
    decimals_for,
    difference_cells,
    estimate_cells,
    is_clear,
    significant,
)
from bnlab.report.heading import heading, interval_words, runs_text, usual_seeds
from bnlab.report.table import Column, bullets, draw, joined
from bnlab.report.verdicts import answers, baseline_name, compared_rows

# beside the main metric and the difference, in the order of the table; the number says which folds first: the highest
DEFAULT_COLUMNS = {"steps_to_target": 1, "seconds_to_target": 5, "step_ms": 4, "acc_gap": 3, "flip_rate": 6}
BENCH_COLUMNS = {"step_ms": 1, "images_per_second": 2}
CURVE_RANK = 2
MOST_NOTES = 3  # below a table, unless all are asked for
MOST_NAMED = 20  # folders that could not be read
_SPARK = (12, 8)  # columns of the curve: where there is room, and where not


def comparison_table(
    comparison: Comparison, out: Terminal, names: Sequence[str] = (), all_notes: bool = False
) -> Group:
    """Return what to print: a block a section, what was found above its table.

    `names` are the metrics beside the main one, if not the usual ones.
    """
    shown: list[Text] = []
    for section, found in zip(comparison.sections, answers(comparison), strict=True):
        drawn = draw(section_columns(section, names), out)
        legend = [*stars(section), *_curve_legend(section, drawn.kept), *_left_out(drawn.left_out)]
        notes = section.notes if all_notes else _most_important(section.notes)
        shown += [Text("")] if shown else []
        shown += [line for sentence in found for line in joined([sentence], out)]
        shown += [Text("")] if found else []
        shown += framed(section, [Text(""), *drawn.lines, Text("")], legend, notes, out)
    return Group(*shown)


def _most_important(notes: Sequence[str]) -> list[str]:
    """Return the first notes, and how many more there are."""
    rest = len(notes) - MOST_NOTES
    return [*notes[:MOST_NOTES], *([f"{rest} more: --notes"] if rest > 0 else [])]


def framed(
    section: Section, body: Sequence[Text], legend: Sequence[str], notes: Sequence[str], out: Terminal
) -> list[Text]:
    """Return the section's header, `body`, what its signs mean, and the notes, each line as wide as there is room."""
    sign = [f"±: {interval_words(section)}"] if any(out.show("±") in line.plain for line in body) else []
    head = joined(heading(section), out, "dim")
    return [*head, *body, *joined([*sign, *legend], out, "dim"), *bullets(notes, out)]


def skipped_lines(comparison: Comparison) -> list[str]:
    """Return a line for each of the first folders that could not be read, one for jobs not started yet, why others were
    refused.

    They are for stderr.
    """
    queued = [f"jobs queued, not started yet: {comparison.queued}"] if comparison.queued else []
    unreadable = [f"{path}: unreadable ({reason})" for path, reason in comparison.skipped[:MOST_NAMED]]
    if more := len(comparison.skipped) - len(unreadable):
        unreadable.append(f"{more:,} more are unreadable; bnlab compare --format json names all")
    return [*map(clean, [*unreadable, *comparison.refused]), *queued]


def section_columns(section: Section, names: Sequence[str] = ()) -> list[Column]:
    """Return all columns in display order; `names` are the metrics beside the main one, by default DEFAULT_COLUMNS."""
    rows = section.rows
    usual = BENCH_COLUMNS if section.is_bench else DEFAULT_COLUMNS
    ranks = {name: rank for rank, name in enumerate(names, 1)} if names else usual
    measured = [n for n in ranks if n != section.main and any(n in row.metrics for row in rows)]
    columns = [*_arm_columns(section), _main_column(section)]
    if any(row.vs_baseline for row in rows) and section.main != "step_ratio":  # a ratio is to the baseline already
        columns.append(_difference_column(section))
        if section.margin is not None or section.is_planned:
            verdicts = [row.verdicts.get(section.main, "") for row in rows]
            columns.append(Column("verdict", [v.removesuffix(" that matters") for v in verdicts], left=True))
    columns += [_metric_column(section, metrics[name], ranks[name]) for name in measured]
    scale = curve_scale(section)
    if scale is not None:
        columns.append(_curve_column(section, scale, len(ranks) + 1 if names else CURVE_RANK))
    return columns


def curve_scale(section: Section) -> Scale | None:
    """Return the axis of the section's curves: all values from the second evaluation on, for the first is chance.

    Accuracies lie on the logarithm of the error, losses on the logarithm; None where no row has a curve.
    """
    values = [value for row in section.rows for value in (row.curve[1:] or row.curve)]
    return Scale.over(values, curve_axis(metrics[section.main])) if values else None


def table_title(metric: Metric, section: Section) -> str:
    """Return a column's title: with the section's target, and with `%` where the figures are percentages."""
    text = metric.column(section.target) if metric.kind == "time to target" else metric.column()
    return f"{text} %" if metric.unit == "%" else text


def best_styles(estimates: Sequence[Interval | None], metric: Metric) -> list[str]:
    """Return the style of each cell of a column: the best one is bold, where one direction is the better one."""
    values = [e.value if e else math.nan for e in estimates]
    known = [value for value in values if not math.isnan(value)]
    if metric.better is None or len(known) < 2:
        return []
    best = max(known) if metric.better == "higher" else min(known)
    return ["bold" if e and e.value == best and not e.num_lost else "" for e in estimates]


# ---------------------------------------------------------------- columns


def _arm_columns(section: Section) -> Iterator[Column]:
    short = short_names(section.changed)
    for key in section.changed:
        cells = [text_of(row.arm[key]) if key in row.arm else MISSING for row in section.rows]
        yield Column(short[key], cells, left=True, is_name=True)
    if not section.changed:
        yield Column("arm", [row.label or MISSING for row in section.rows], left=True, is_name=True)
    for key, name in short_names(section.chosen).items():
        cells = [text_of(row.best[key]) if key in row.best else MISSING for row in section.rows]
        yield Column(f"best {name}", cells, left=True, is_name=True)
    usual = usual_seeds(section.rows)
    runs = [runs_text(row, usual) for row in section.rows]
    if any(runs):
        states = [Cell(lines[0], below=tuple(lines[1:])) if lines else Cell("") for lines in runs]
        yield Column("runs", states, left=True, styles=["yellow" if lines else "" for lines in runs])


def _main_column(section: Section) -> Column:
    metric = metrics[section.main]
    cells = _estimates(section.rows, metric)
    is_ratio = metric.name == "step_ratio"
    estimates = _of(section.rows, metric)
    remarks = [
        (f"n={e.n}" if e else "") if not is_ratio else "baseline" if row.is_baseline else ""
        for row, e in zip(section.rows, estimates, strict=True)
    ]
    marked = [
        replace(cell, remark=f"{remark} {cell.remark}".strip())
        if e and not cell.interval and not e.num_missed and cell.head != MISSING
        else cell
        for cell, e, remark in zip(cells, estimates, remarks, strict=True)
    ]
    return Column(table_title(metric, section), marked, metric.name, styles=_decided_styles(section, metric))


def _difference_column(section: Section) -> Column:
    metric = metrics[section.main]
    differences = [row.vs_baseline.get(metric.name) for row in section.rows]
    cells = [
        Cell("", "baseline") if row.is_baseline else cell
        for cell, row in zip(difference_cells(differences, metric.scale, _places(section)), section.rows, strict=True)
    ]
    styles = []
    for row, difference in zip(section.rows, differences, strict=True):
        clear = difference is not None and is_clear(difference) and metric.better is not None
        better = difference is not None and (difference.value > 0) == (metric.better == "higher")
        styles.append("dim" if row.is_baseline else ("green" if better else "red") if clear else "")
    return Column(f"vs {baseline_name(section)}", cells, styles=styles)


def _metric_column(section: Section, metric: Metric, rank: int) -> Column:
    cells = _estimates(section.rows, metric)
    short = [replace(cell, interval="") for cell in cells]
    styles = _decided_styles(section, metric)
    return Column(table_title(metric, section), cells, metric.name, short, rank, styles=styles)


def _decided_styles(section: Section, metric: Metric) -> list[str]:
    """Return bold for what is decided: an arm better than its baseline, or a baseline better than all its arms."""
    better = {id(row) for row in section.rows if row.verdicts.get(metric.name) == "better"}
    for base in (row for row in section.rows if row.is_baseline):
        others = [row for row in compared_rows(section) if row.against == base.label]
        if others and all(row.verdicts.get(metric.name) == "worse" for row in others):
            better.add(id(base))
    return ["bold" if id(row) in better else "" for row in section.rows]


def _curve_column(section: Section, scale: Scale, rank: int) -> Column:
    lines, short = ([sparkline(row.curve, scale, width) for row in section.rows] for width in _SPARK)
    return Column("curve", lines, "curve", short, rank, left=True)


def _estimates(rows: Sequence[Row], metric: Metric) -> list[Cell]:
    return estimate_cells(_of(rows, metric), metric.scale, whole=metric.is_whole)


def _of(rows: Sequence[Row], metric: Metric) -> list[Interval | None]:
    return [row.metrics.get(metric.name) for row in rows]


def _places(section: Section) -> int:
    """Return the decimals of the main metric, which its differences share where they have no interval."""
    metric = metrics[section.main]
    values = [e.value * metric.scale for row in section.rows if (e := row.metrics.get(metric.name))]
    return decimals_for(values, [])


def curve_axis(metric: Metric) -> Axis:
    """Return on what scale a metric is drawn."""
    curve = metric.curve or ""
    return "error" if curve.endswith(".accuracy") else "log" if curve.endswith(".loss") else "linear"


# ---------------------------------------------------------------- below the table


def stars(section: Section) -> list[str]:
    """Return what verdicts, stars and daggers of its table mean."""
    lines = []
    if any(e.is_beside for row in section.rows for e in row.metrics.values()):
        lines.append(f"{AT_ONCE}: of runs that ran while others did, no result; `bnlab bench` compares step times")
    if section.margin is not None:
        unit = {"%": " points", "": ""}.get(metrics[section.main].unit, f" {metrics[section.main].unit}")
        lines.append(f"verdict: a difference within ±{section.margin:g}{unit} does not matter")
    if any(is_clear(d) for row in section.rows if (d := row.vs_baseline.get(section.main))):
        lines.append(f"*: differs from {baseline_name(section)} at the 5% level, paired by seed, Holm-corrected")
    return lines


def _curve_legend(section: Section, kept: Sequence[Column]) -> list[str]:
    scale = curve_scale(section)
    if scale is None or all(column.key != "curve" for column in kept):
        return []
    metric = metrics[section.main]
    unit = " %" if metric.unit == "%" else ""
    how = {"error": " on a log scale of the error", "log": " on a log scale", "linear": ""}[scale.axis]
    low, high = (significant(value * metric.scale) + unit for value in (scale.low, scale.high))
    low += " or less" if any(value < scale.low for row in section.rows for value in row.curve) else ""
    what = (metric.curve or metric.name).replace(".", " ")
    return [f"curve: {what}, ▁ {low} to █ {high}{how}, one axis for all rows"]


def _left_out(columns: Sequence[Column]) -> list[str]:
    names = ", ".join(column.key for column in columns if column.key in metrics)
    shown = [f"left out for width: {names} (--metric NAME shows them)"] if names else []
    curve = any(column.key not in metrics for column in columns)  # no metric, so that none can be named for it
    return [*shown, "left out for width: the curve (a wider terminal shows it)"] if curve else shown
