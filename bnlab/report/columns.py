"""A section as columns of text, and which of them give way when the terminal is narrow."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from rich.cells import cell_len

from bnlab.compare.arms import short_names, text_of
from bnlab.compare.result import Row, Section
from bnlab.interval import Interval
from bnlab.metrics import Metric, metrics
from bnlab.report.chart import Axis, Scale, sparkline
from bnlab.report.console import clean, to_ascii
from bnlab.report.figures import MISSING, Cell, decimals_for, difference_cells, estimate_cells, is_clear
from bnlab.report.heading import runs_text, usual_seeds

# beside the main metric and the difference, in the order of the table; the number says which folds first: the highest
DEFAULT_COLUMNS = {"steps_to_target": 1, "seconds_to_target": 5, "step_ms": 4, "acc_gap": 3, "flip_rate": 6}
BENCH_COLUMNS = {"step_ms": 1, "images_per_second": 2}
CURVE_RANK = 2
GAP = 2
_SPARK = (12, 8)  # columns of the curve: where there is room, and where not


@dataclass(frozen=True)
class Column:
    """One column: its cells as aligned text, one an arm, and a shorter form to fall back on."""

    title: str
    cells: list[str]
    name: str = ""  # what `--metric` takes
    short: list[str] | None = None
    rank: int = 0  # 0 stays; the highest gives way first
    left: bool = False
    is_arm: bool = False  # one of the columns that tell which arm it is
    folded: bool = False  # the title may take two lines
    styles: list[str] = field(default_factory=list)  # one a cell; empty means none

    @property
    def header(self) -> list[str]:
        """The title; if folded, on two lines where the figures below are narrower. A number keeps its unit."""
        if not self.folded:
            return [self.title]
        body = max((_width(cell) for cell in self.cells), default=0)
        glued = self.title.replace(" %", "\u00a0%")
        folds = (
            textwrap.wrap(glued, room, break_on_hyphens=False, break_long_words=False)
            for room in range(max(body, 1), len(glued) + 1)
        )
        lines = next((lines for lines in folds if len(lines) <= 2), [glued])
        return [line.replace("\u00a0", " ") for line in lines]

    @cached_property
    def width(self) -> int:
        return max(map(_width, [*self.header, *self.cells]))


def section_columns(section: Section, names: Sequence[str] = ()) -> list[Column]:
    """Return all columns in display order; `names` are the metrics beside the main one, by default DEFAULT_COLUMNS."""
    rows = section.rows
    usual = BENCH_COLUMNS if section.is_bench else DEFAULT_COLUMNS
    ranks = {name: rank for rank, name in enumerate(names, 1)} if names else usual
    measured = [n for n in ranks if n != section.main and any(n in row.metrics for row in rows)]
    columns = [*_arm_columns(section), _main_column(section)]
    if any(row.vs_baseline for row in rows) and section.main != "step_ratio":  # a ratio is to the baseline already
        columns.append(_difference_column(section))
    columns += [_metric_column(section, metrics[name], ranks[name]) for name in measured]
    scale = curve_scale(section)
    if scale is not None:
        columns.append(_curve_column(section, scale, len(ranks) + 1 if names else CURVE_RANK))
    return columns


def in_ascii(column: Column) -> Column:
    """Return the column in ASCII, its cells of one width again (`±` takes two places)."""

    def even(cells: list[str]) -> list[str]:
        texts = [to_ascii(cell) for cell in cells]
        return [f"{text:<{max(map(_width, texts))}}" for text in texts]

    short = None if column.short is None else even(column.short)
    return replace(column, title=to_ascii(column.title), cells=even(column.cells), short=short)


def fold(columns: Sequence[Column], width: int) -> tuple[list[Column] | None, list[Column]]:
    """Return the columns that fit into `width` and those left out; None where the ones that stay do not fit.

    By rank, the columns are first let in at their narrowest, then get their intervals, then their titles on one line.
    """
    forms: list[Column | None] = [replace(column, folded=True) if not column.rank else None for column in columns]
    if table_width(forms) > width:
        return None, []
    by_rank = sorted(range(len(columns)), key=lambda i: columns[i].rank)
    for widened in (_narrowest, partial(replace, folded=True), replace):
        for i in by_rank:
            trial = [*forms[:i], widened(columns[i]), *forms[i + 1 :]]
            if (widened is _narrowest or forms[i] is not None) and table_width(trial) <= width:
                forms = trial
    left_out = [columns[i] for i in by_rank if forms[i] is None]
    return [form for form in forms if form is not None], left_out


def _narrowest(column: Column) -> Column:
    return replace(column, cells=column.cells if column.short is None else column.short, folded=True)


def table_width(columns: Sequence[Column | None]) -> int:
    """Return the width of a table of those `columns` that are there."""
    widths = [column.width for column in columns if column is not None]
    return sum(widths) + GAP * (len(widths) - 1)


def curve_scale(section: Section) -> Scale | None:
    """Return the axis of the section's curves: all values from the second evaluation on, for the first is chance.

    Accuracies lie on the logarithm of the error, losses on the logarithm; None where no row has a curve.
    """
    values = [value for row in section.rows for value in (row.curve[1:] or row.curve)]
    return Scale.over(values, _axis(metrics[section.main])) if values else None


def baseline_name(section: Section) -> str:
    """Return what the baselines have in common (`none`), or `baseline` where that is nothing or long."""
    arms = [row.arm for row in section.rows if row.is_baseline]
    shared = (
        [text_of(value) for key, value in arms[0].items() if all(arm.get(key) == value for arm in arms)] if arms else []
    )
    name = clean(" ".join(shared))
    return name if 0 < len(name) <= 12 else "baseline"


def table_title(metric: Metric, section: Section) -> str:
    """Return a column's title: with the section's target, and with `%` where the figures are percentages."""
    text = metric.column(section.target) if metric.kind == "time to target" else metric.column()
    return f"{text} %" if metric.unit == "%" else text


def _axis(metric: Metric) -> Axis:
    curve = metric.curve or ""
    return "error" if curve.endswith(".accuracy") else "log" if curve.endswith(".loss") else "linear"


def _arm_columns(section: Section) -> Iterator[Column]:
    short = short_names(section.changed)
    for key in section.changed:
        cells = [clean(text_of(row.arm[key])) if key in row.arm else MISSING for row in section.rows]
        yield Column(clean(short[key]), cells, left=True, is_arm=True)
    if not section.changed:
        yield Column("arm", [clean(row.label) or MISSING for row in section.rows], left=True, is_arm=True)
    for key, name in short_names(section.chosen).items():
        cells = [clean(text_of(row.best[key])) if key in row.best else MISSING for row in section.rows]
        yield Column(clean(f"best {name}"), cells, left=True, is_arm=True)
    usual = usual_seeds(section.rows)
    runs = ["\n".join(clean(line) for line in runs_text(row, usual)) for row in section.rows]
    if any(runs):
        yield Column("runs", runs, left=True, styles=["yellow" if text else "" for text in runs])


def _main_column(section: Section) -> Column:
    metric = metrics[section.main]
    cells = _estimates(section.rows, metric)
    is_ratio = metric.name == "step_ratio"
    remarks = ["n=1" if not is_ratio else "baseline" if row.is_baseline else "" for row in section.rows]
    estimates = _of(section.rows, metric)
    marked = [
        replace(cell, remark=remark) if e and e.n == 1 and not cell.tail and cell.head != MISSING else cell
        for cell, e, remark in zip(cells, estimates, remarks, strict=True)
    ]
    return Column(
        table_title(metric, section),
        aligned(marked),
        metric.name,
        styles=best_styles(estimates, metric),
    )


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
    return Column(f"vs {baseline_name(section)}", aligned(cells), styles=styles)


def _metric_column(section: Section, metric: Metric, rank: int) -> Column:
    cells = _estimates(section.rows, metric)
    short = [replace(cell, interval="") for cell in cells]
    return Column(table_title(metric, section), aligned(cells), metric.name, aligned(short), rank,
                  styles=best_styles(_of(section.rows, metric), metric))  # fmt: skip


def _curve_column(section: Section, scale: Scale, rank: int) -> Column:
    lines, short = ([sparkline(row.curve, scale, width) for row in section.rows] for width in _SPARK)
    return Column("curve", lines, "curve", short, rank, left=True)


def _estimates(rows: Sequence[Row], metric: Metric) -> list[Cell]:
    return estimate_cells(_of(rows, metric), metric.scale, whole=metric.unit == "steps")


def _of(rows: Sequence[Row], metric: Metric) -> list[Interval | None]:
    return [row.metrics.get(metric.name) for row in rows]


def _places(section: Section) -> int:
    """Return the decimals of the main metric, which its differences share where they have no interval."""
    metric = metrics[section.main]
    values = [e.value * metric.scale for row in section.rows if (e := row.metrics.get(metric.name))]
    return decimals_for(values, [])


def best_styles(estimates: Sequence[Interval | None], metric: Metric) -> list[str]:
    """Return the style of each cell of a column: the best one is bold, where one direction is the better one."""
    values = [e.value if e else math.nan for e in estimates]
    known = [value for value in values if not math.isnan(value)]
    if metric.better is None or len(known) < 2:
        return []
    best = max(known) if metric.better == "higher" else min(known)
    return ["bold" if value == best else "" for value in values]


def aligned(cells: Sequence[Cell]) -> list[str]:
    """Return the cells as text, heads to the right of their part and tails to the left of theirs."""
    head = max((len(c.head) for c in cells), default=0)
    tail = max((len(c.tail) for c in cells), default=0)
    return [f"{c.head:>{head}} {c.tail:<{tail}}" if tail else f"{c.head:>{head}}" for c in cells]


def _width(text: str) -> int:
    return max((cell_len(line) for line in text.split("\n")), default=0)
