"""What figures show, as plain values: a picture and the table beside it are of the same panels. No matplotlib here.

    differences(section)    # a picture, or None where a section has nothing of the kind

Every panel is lines over a number, or dots with intervals one below the other; an arm has one colour in all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bnlab.claims.ladder import Outcome
from bnlab.compare.arms import text_of
from bnlab.compare.comparison import Observed, estimate, mean_curve, observe
from bnlab.compare.notes import named, unit_of
from bnlab.compare.result import Row, Section
from bnlab.compare.statistics import estimate_mean
from bnlab.interval import Interval
from bnlab.metrics import Metric, metrics
from bnlab.record.read import Run
from bnlab.report.chart import Axis
from bnlab.report.compare_report import curve_axis, table_title
from bnlab.report.console import clean
from bnlab.report.curves import finite, mapping
from bnlab.report.figures import MISSING, Cell, difference_cells, estimate_cells, interval_cells, number
from bnlab.report.heading import interval_words
from bnlab.report.layers_report import layers_of
from bnlab.report.table import shortened
from bnlab.report.verdicts import arm_name, baseline_name

MOST_ARMS = 12  # of lines in a panel
MOST_COLUMNS = 10  # of a table
SPLITS = ("train", "valid", "test")
MOST_CAUSES = 3  # arms whose gap is shown by cause
_LONGEST_NAME = 48
_CAUSE = re.compile(r"test\.term_(\w+)_kl")
# the size that `bnlab bench --scale` gave a contest, behind what it is of; `data` has it behind its arms
_SCALED = re.compile(r"(?P<of>.*?) ?\b(?P<scale>width|image|batch|data)(?: (?P<size>\d[\d,x -]*))?")
_OVER = {"width": "width", "image": "pixels a side", "batch": "batch size", "data": "training images"}
_LOGS: Mapping[Axis, str] = {"error": "log scale of the error", "log": "log scale", "linear": ""}


@dataclass(frozen=True)
class Series:
    """An arm, or a split of a single run: a value at each place of a line, or one value at a dot."""

    label: str
    values: Sequence[Interval]
    colour: int  # its place among the arms; 0 is the baseline's
    places: Sequence[float] = ()
    is_open: bool = False  # its difference is undecided
    floor: float | None = None  # that its step time cannot be below
    cell: str = ""  # of a dot, as the table of the comparison has it
    variant: int = 0  # its place among the arms of its colour
    tried: Mapping[float, Outcome] = field(default_factory=dict)  # levels of a search, whose interval is a bracket


@dataclass(frozen=True)
class Panel:
    """Lines `over` a number, or dots without it, of values that are shown times `factor`."""

    title: str
    series: Sequence[Series]
    over: str = ""
    factor: float = 1.0
    axis: Axis = "linear"
    by_doubling: bool = False  # what lines are over stands on a log scale
    reference: float | None = None  # where nothing differs
    band: tuple[float, float] | None = None  # within which a difference says nothing, or does not matter

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return titles and rows of text; of a long line some of its places, the first and the last among them."""
        if not self.over:
            floors = any(series.floor is not None for series in self.series)
            rows = [
                [series.label, series.cell, *([number(series.floor, 3)] if floors else [])] for series in self.series
            ]
            return ["", self.title, *(["floor"] if floors else [])], rows
        places = sorted({place for series in self.series for place in series.places})
        if len(places) > MOST_COLUMNS:
            step = (len(places) - 1) / (MOST_COLUMNS - 1)
            places = [places[round(step * i)] for i in range(MOST_COLUMNS)]
        at = [dict(zip(series.places, series.values, strict=True)) for series in self.series]
        columns = [map(str, estimate_cells([each.get(place) for each in at], self.factor)) for place in places]
        rows = [[series.label, *cells] for series, *cells in zip(self.series, *columns, strict=True)]
        return ["", *(f"{self.over} {place:,g}" for place in places)], rows

    def described(self) -> str:
        """Return the panel in a sentence, for whoever cannot see it."""
        if self.over:
            ends = (f"{series.label} {cells[-1]}" for series, cells in zip(self.series, self.table()[1], strict=True))
            return f"{self.title} by {self.over}; at the end: {named(list(ends), by='; ')}"
        return f"{self.title}: {named([f'{series.label} {series.cell}' for series in self.series], by='; ')}"


@dataclass(frozen=True)
class Picture:
    """Rows of panels that stand side by side, and what their signs mean."""

    rows: Sequence[Sequence[Panel]]
    remark: str


# ---------------------------------------------------------------- what there is


def curves(section: Section) -> Picture | None:
    """Return the curve behind the main metric by arm; of a single run accuracy and loss by split."""
    if len(section.rows) == 1 and len(section.rows[0].runs) == 1:
        return _splits(section.rows[0].runs)
    curve = metrics[section.main].curve
    metric = next((m for m in metrics.values() if curve and m.curve == curve and m.kind == "mean"), None)
    if metric is None:
        return None
    series, without = [], []
    for colour, row in drawn_arms(section):
        steps, values = mean_curve(finished(row), metric)
        if _is_line(values):
            series.append(Series(name_of(row, section), values, colour, steps, variant=variant_of(row, section)))
        else:
            without.append(name_of(row, section))
    has_bands = any(value.low is not None for each in series for value in each.values)
    said = ["mean over seeds, band: its 95% interval" if has_bands else "one seed an arm", _LOGS[curve_axis(metric)]]
    said += [f"no curve of a finished run: {named(without)}"] if without else []
    panel = _lines(table_title(metric, section), series, metric)
    return Picture([[panel]], "; ".join(filter(None, said))) if series else None


def _splits(runs: Sequence[Run]) -> Picture | None:
    panels = []
    for what, unit in (("accuracy", "%"), ("loss", "nats")):
        each = [metrics[f"{split}_{what}"] for split in SPLITS]
        curves = [(split, *mean_curve(runs, metric)) for split, metric in zip(SPLITS, each, strict=True)]
        series = [
            Series(split, values, colour, steps)
            for colour, (split, steps, values) in enumerate(curves)
            if _is_line(values)
        ]
        panels += [_lines(f"{what}, {unit}", series, each[0])] if series else []
    return Picture([panels], "one seed; log scales, of accuracy that of the error") if panels else None


def _lines(title: str, series: list[Series], metric: Metric) -> Panel:
    return Panel(title, series, "step", metric.scale, curve_axis(metric))


def differences(section: Section) -> Picture | None:
    """Return the paired differences of the main metric from the baseline."""
    metric = metrics[section.main]
    known = [row.vs_baseline.get(metric.name) for row in section.rows]
    series = [
        replace(dot, is_open=row.verdicts.get(metric.name, "undecided") == "undecided")
        for dot, row in _dots(section, known, difference_cells(known, metric.scale, 2))
    ]
    if not series:
        return None
    margin = section.margin and section.margin / metric.scale
    unit = f", {unit_of(metric)}" if unit_of(metric) else ""
    said = [f"mean of the differences and its {interval_words(section, of_differences=True)}"]
    said += ["hollow: undecided"] if any(dot.is_open for dot in series) else []
    said += [f"{metric.better} is better"] if metric.better else []
    said += [f"grey: within ±{section.margin:g}, no difference that matters"] if margin else []
    panel = Panel(
        f"{metric.title} minus that of {baseline_name(section)}{unit}",
        series,
        factor=metric.scale,
        reference=0.0,
        band=(-margin, margin) if margin else None,
    )
    return Picture([[panel]], "; ".join(said))


def steps(section: Section) -> Picture | None:
    """Return the step times of a bench over that of its baseline."""
    if not section.is_bench:
        return None
    benches = [mapping((row.runs[0].summary or {}).get("bench")) if row.runs else {} for row in section.rows]
    floors = {id(row): finite(bench.get("floor")) for row, bench in zip(section.rows, benches, strict=True)}
    known = [None if row.is_baseline else row.metrics.get("step_ratio") for row in section.rows]
    series = [replace(dot, floor=floors[id(row)]) for dot, row in _dots(section, known, estimate_cells(known, 1.0))]
    if not series:
        return None
    ends = ([finite(bench.get(f"control_{end}")) for bench in benches] for end in ("low", "high"))
    lows, highs = ([end for end in each if end is not None] for each in ends)
    said = ["median over the rounds and its 95% interval", "tick: the floor, which the bytes moved alone would give"]
    said += ["grey: a second copy of the baseline"] if lows and highs else []
    band = (min(lows), max(highs)) if lows and highs else None
    panel = Panel(f"step over that of {baseline_name(section)}", series, reference=1.0, band=band)
    return Picture([[panel]], "; ".join(said))


def scaling(section: Section) -> Picture | None:
    """Return the step times of a bench by the size that `--scale` gave it, over those of the baseline, by arm."""
    found: dict[tuple[str, str, str], dict[str, dict[float, Interval]]] = {}  # by contest, arm and size
    for bench in (mapping((row.runs[0].summary or {}).get("bench")) for row in section.rows if row.runs):
        scaled = _SCALED.fullmatch(str(bench.get("contest")))
        ratio, low, high = (finite(bench.get(f"ratio{end}")) for end in ("", "_low", "_high"))
        if scaled is None or ratio is None or (scaled["scale"] == "data") != (scaled["size"] is None):
            continue
        label, size, baseline = str(bench.get("arm")), scaled["size"], str(bench.get("baseline"))
        if size is None:  # all sizes of the data are in one contest
            label, _, size = label.rpartition(" ")
        elif label == baseline:
            continue
        place = max(float(digits) for digits in re.findall(r"\d+", size.replace(",", "")) or ["nan"])
        arms = found.setdefault((clean(scaled["of"]), scaled["scale"], clean(baseline)), {})
        arms.setdefault(shortened(clean(label), _LONGEST_NAME), {})[place] = Interval(ratio, low, high, 0)
    panels = []
    for (of, scale, baseline), arms in found.items():
        own = [baseline.rpartition(" ")[0]]  # the baseline's line, which there is where its size grows too
        names = sorted(arms, key=lambda name: name not in own)
        series = [
            Series(name, list(at.values()), colour, list(at))
            for colour, name in enumerate(names, int(names[0] not in own))
            if len(at := dict(sorted(arms[name].items()))) > 1
        ]
        about = [of, *(each.label for each in series if len(series) == 1)]  # a legend names several
        title = ": ".join([*filter(None, about), f"step over that of {baseline}"])
        panels += [Panel(title, series[:MOST_ARMS], _OVER[scale], by_doubling=True, reference=1.0)] if series else []
    remark = "median over the rounds, band: its 95% interval; log scale of the size"
    return Picture([[panel] for panel in panels], remark) if panels else None


def gap(section: Section) -> Picture | None:
    """Return by arm how far training mode and evaluation mode are apart at the end, and where it comes from."""
    compared = []
    for metric in (metrics[name] for name in ("acc_gap", "flip_rate", "mate_noise")):
        known = [estimate(observe(row.runs, metric, None), metric) for row in section.rows]
        series = [dot for dot, _ in _dots(section, known, estimate_cells(known, metric.scale))]
        if series and len(section.rows) > 1:
            compared.append(Panel(f"{metric.title}, {metric.unit}", series, factor=metric.scale, reference=0.0))
    causes = [panel for colour, row in arms_with_colours(section) if (panel := _causes(colour, row, section))][
        :MOST_CAUSES
    ]
    said = ["at the last evaluation; mean over seeds and its 95% interval"]
    said += ["below: how far predictions move by each cause that there is"] if causes else []
    rows = [row for row in (compared, causes) if row]
    return Picture(rows, "; ".join(said)) if rows else None


def _causes(colour: int, row: Row, section: Section) -> Panel | None:
    """Return by cause how far it moves an arm's predictions, which cannot cancel, where that was measured."""
    terms: dict[str, dict[int, float]] = {}
    for run in finished(row):
        summary = run.summary or {}
        last = {name: values[-1] for name, values in summary["curve"].items() if values} | summary.get("measured", {})
        for name, value in last.items():
            if (found := _CAUSE.fullmatch(name)) and math.isfinite(value):
                terms.setdefault(clean(found[1].replace("_", " ")), {})[run.seed] = value
    known = {name: estimate(Observed(by), metrics["kl"]) for name, by in terms.items() if any(by.values())}
    cells = interval_cells(list(known.values())) if known else []
    series = [Series(name, [known[name]], colour, cell=str(cell)) for name, cell in zip(known, cells, strict=True)]
    return Panel(f"{name_of(row, section)}: KL, nats", series, reference=0.0) if series else None


def depth(section: Section) -> Picture | None:
    """Return by layer how far the running statistics are from those of the test probe, at the last evaluation."""
    panels = []
    for figure in ("mean_z", "log_std_ratio"):
        series = []
        for colour, row in drawn_arms(section):
            by_depth: dict[float, list[float]] = {}
            for layer in (layer for run in finished(row) for layer in layers_of(run.summary or {})):
                by_depth.setdefault(layer.depth, []).append(getattr(layer, figure))
            places = sorted(by_depth)
            means = [estimate_mean(by_depth[place], metrics[figure].bounds) for place in places]
            variant = variant_of(row, section)
            series += [Series(name_of(row, section), means, colour, places, variant=variant)] if places else []
        about = [each.label for each in series if len(series) == 1 < len(section.rows)]  # a legend names several
        title = ": ".join([*about, metrics[figure].title])
        panels += [Panel(title, series, "depth", reference=0.0)] if series else []
    remark = (
        "running statistics against those of the test probe, median channel of each layer: "
        "mean z is |running mean - mean| / sigma, log std ratio is log(running sigma / sigma)"
    )
    return Picture([panels], remark) if panels else None


def shift(section: Section) -> Picture | None:
    """Return the compared metric over the severity of each shift under which runs were evaluated again."""
    metric = metrics[section.main]
    rows = [row for row in section.rows if "eval.shifted" in row.arm]
    keys = [key for key in section.changed if key != "eval.shifted" and len({row.arm.get(key) for row in rows}) > 1]
    plain: dict[str, Interval] = {}
    shifted: dict[str, dict[str, dict[float, Interval]]] = {}  # by shift, arm and severity
    for row in rows:
        shift, _, severity = str(row.arm["eval.shifted"]).rpartition("-")
        arm = " ".join(text_of(row.arm[key]) for key in keys if key in row.arm)
        arm = shortened(clean(arm or "all runs"), _LONGEST_NAME)
        if severity.isdecimal():
            shifted.setdefault(clean(shift), {}).setdefault(arm, {})[float(severity)] = row.metrics[metric.name]
        else:
            plain[arm] = row.metrics[metric.name]
    panels = []
    for shift, by_arm in shifted.items():
        lines = {arm: {0.0: plain[arm]} | dict(sorted(by_arm[arm].items())) for arm in plain if arm in by_arm}
        series = [Series(arm, [*lines[arm].values()], i, [*lines[arm]]) for i, arm in enumerate(plain) if arm in lines]
        title = f"{shift}: {table_title(metric, section)}"
        panels += [Panel(title, series[:MOST_ARMS], "severity", metric.scale)] if series else []
    pairs = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    return Picture(pairs, "mean over seeds, band: its 95% interval") if pairs else None


# ---------------------------------------------------------------- parts


def arms_with_colours(section: Section) -> list[tuple[int, Row]]:
    """Return the rows with their colours, one a strategy: 0 is that of a baseline."""
    bases = {_strategy(row, section) for row in section.rows if row.is_baseline}
    others = list(dict.fromkeys(each for row in section.rows if (each := _strategy(row, section)) not in bases))
    colours = dict.fromkeys(bases, 0) | {each: place for place, each in enumerate(others, 1)}
    return [(colours[_strategy(row, section)], row) for row in section.rows]


def variant_of(row: Row, section: Section) -> int:
    """Return the place of an arm among those of its strategy, which share a colour."""
    same = [each for each in section.rows if _strategy(each, section) == _strategy(row, section)]
    return next(place for place, each in enumerate(same) if each is row)


def drawn_arms(section: Section, most: int = MOST_ARMS) -> list[tuple[int, Row]]:
    """Return the rows that are drawn, with their colours: as many of one strategy as of another, a baseline too."""
    arms = arms_with_colours(section)
    ranked = sorted(range(len(arms)), key=lambda i: (variant_of(arms[i][1], section), i))
    base = next((i for i in ranked if arms[i][1].is_baseline), ranked[0] if ranked else 0)
    return [arms[i] for i in sorted([base, *(i for i in ranked if i != base)][:most])]


def _strategy(row: Row, section: Section) -> object:
    """Return the value of the first key in which arms differ; where it is the only one each arm has its own."""
    return row.arm.get(section.changed[0]) if len(section.changed) > 1 else row.label


def _dots(section: Section, known: Sequence[Interval | None], cells: Sequence[Cell]) -> Iterator[tuple[Series, Row]]:
    """Yield a dot for each arm that has a value, as its cell in a table has it."""
    for (colour, row), value, cell in zip(arms_with_colours(section), known, cells, strict=True):
        if value is not None and math.isfinite(value.value):
            yield Series(name_of(row, section), [value], colour, cell=str(cell), variant=variant_of(row, section)), row


def _is_line(values: Sequence[Interval]) -> bool:
    return sum(math.isfinite(value.value) for value in values) > 1


def finished(row: Row) -> list[Run]:
    """Return the runs that a mean is over."""
    return [run for run in row.runs if run.state == "done"]


def name_of(row: Row, section: Section) -> str:
    return shortened(clean(arm_name(row.label or MISSING, section)), _LONGEST_NAME)
