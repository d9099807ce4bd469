"""Pictures of what meters read: over training, by depth, and the bands of a unit. No matplotlib here."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

from bnlab.compare.notes import named
from bnlab.compare.result import Row, Section
from bnlab.compare.statistics import estimate_mean
from bnlab.errors import RecordError
from bnlab.interval import Interval
from bnlab.metric import ANY, Metric
from bnlab.metrics import metrics
from bnlab.record.read import Run
from bnlab.report.curves import finite, mapping, numbers
from bnlab.report.panels import Panel, Picture, Series, drawn_arms, finished, name_of, variant_of

MOST_FIGURES = 3  # of a meter, side by side
MOST_BANDS = 4  # arms whose bands are drawn
FARTHEST = 300.0  # the logarithm of the ends of an axis, at most: 2e130
NOT_DRAWN = ("step", "converged")
WORDS = {"gradient": "gradient length", "weight": "weight length"}  # of layers, which are no metrics
PERCENTILES = ("p15", "p50", "p85")
Track = Mapping[float, float]  # place -> value, of one run
LayerRows = Mapping[tuple[str, str, str, float, str], Mapping[float, float]]
Tracks = list[tuple[int, Row, dict[int, Track]]]  # of each arm: its colour, and by seed


def over_training(section: Section) -> Picture | None:
    """Return a row of panels a meter: its first figures of the network over the steps, by arm.

    Where the compared metric is one of them, that alone.
    """
    rows, read = [], []
    asked = section.main in read_figures(section)
    for meter in dict.fromkeys(name for row in section.rows for run in finished(row) for name in _meters(run)):
        figures = dict.fromkeys(key for row in section.rows for run in finished(row) for key in _curve(run, meter))
        panels = []
        known = [figure for figure in figures if figure not in NOT_DRAWN][:MOST_FIGURES]
        for figure in [section.main] if section.main in figures else [] if asked else known:
            tracks = _tracks(section, partial(_over_steps, meter, figure))
            panels += _panel(figure, "step", tracks, section)
        if panels:
            rows.append(panels)
            read.append(meter)
    return Picture(rows, _remark(f"read by {named(read)}", rows)) if rows else None


def read_figures(section: Section) -> list[str]:
    """Return what meters read of the network over training."""
    curves = (_curve(run, name) for row in section.rows for run in finished(row) for name in _meters(run))
    return [figure for figure in dict.fromkeys(key for curve in curves for key in curve) if figure not in NOT_DRAWN]


def metric_over_training(metric: Metric, section: Section) -> list[Panel]:
    """Return a panel of what a meter's metric is made of, over the steps, by arm; none where no meter read it."""
    for meter in dict.fromkeys(name for row in section.rows for run in finished(row) for name in _meters(run)):
        if panels := _panel(metric.name, "step", _tracks(section, partial(_over_steps, meter, metric.name)), section):
            return panels
    return []


def by_depth(section: Section, only: str | None = None) -> Picture | None:
    """Return a row of panels a meter: its first figure of a layer by depth, at the first and the last reading.

    With `only` that figure alone.
    """
    found = dict.fromkeys(
        (meter, figure)
        for row in section.rows
        for run in finished(row)
        for meter, figure, layer, _, axis in _layer_rows(str(run.folder))
        if layer != "-" and axis == "-" and only in (None, figure)
    )
    firsts = dict(reversed(found))
    rows = []
    for meter, figure in firsts.items():
        panels = []
        for when, place in (("at first", 0), ("at the end", -1)):
            tracks = _tracks(section, partial(_at, meter, figure, place))
            panels += _panel(figure, "depth", tracks, section, when)
        rows += [panels] if panels else []
    return Picture(rows, _remark(f"read by {named(list(firsts))}, the first layer at depth 1", rows)) if rows else None


def bands(section: Section) -> Picture | None:
    """Return a panel an arm: percentiles of what enters the activation of a unit of the last hidden layer."""
    panels = []
    for _, row in drawn_arms(section, MOST_BANDS):
        for run in finished(row)[:1]:
            series = [
                Series(percentile, [Interval(v, None, None, 1) for v in track.values()], colour, list(track))
                for colour, percentile in enumerate(PERCENTILES)
                if len(track := _band(run, percentile)) > 1
            ]
            if series:
                panels.append(Panel(name_of(row, section), series, "step"))
    rows = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    said = "what enters the activation of one unit of the last hidden layer: percentiles over fixed samples, one seed"
    return Picture(rows, said) if rows else None


def unread(sections: Iterable[Section]) -> Iterator[str]:
    """Yield why pictures are without a run, a line a meters.csv that cannot be read."""
    for run in (run for section in sections for row in section.rows for run in finished(row)):
        try:
            _read(str(run.folder), os.lstat(run.folder / "meters.csv").st_mtime_ns)
        except FileNotFoundError:
            pass
        except RecordError as error:
            yield str(error)


# ---------------------------------------------------------------- parts


def _remark(about: str, rows: Sequence[Sequence[Panel]]) -> str:
    logs = any(panel.axis == "log" for row in rows for panel in row)
    said = [about, "mean over seeds, band: its 95% interval", *(["log scale where all is above 0"] if logs else [])]
    return "; ".join(said)


def _panel(figure: str, over: str, tracks: Tracks, section: Section, when: str = "") -> list[Panel]:
    """Return a panel of a figure's mean over seeds, on a log scale where everything is above 0; none without a line.

    A place where most seeds have a value is drawn: few readings of a curvature below 0 take no arm away.
    """
    metric = metrics.get(figure)
    bounds = ANY if metric is None else metric.bounds
    values = [value for _, _, by_seed in tracks for track in by_seed.values() for value in track.values()]
    log = bool(values) and min(values) > 0
    series = []
    for colour, row, by_seed in tracks:
        at: dict[float, list[float]] = {}
        for place, value in (each for track in by_seed.values() for each in track.items()):
            at.setdefault(place, []).append(value)
        places = sorted(place for place, read in at.items() if 2 * len(read) > len(by_seed))
        means = [_mean(at[place], log, bounds) for place in places]
        if len(places) > 1:
            variant = variant_of(row, section)
            series.append(Series(name_of(row, section), means, colour, places, variant=variant))
    title = WORDS.get(figure, figure.replace("_", " ")) if metric is None else metric.title
    unit, scale = ("", 1.0) if metric is None else (metric.unit, metric.scale)
    title = ", ".join(filter(None, (title, unit, when)))
    return [Panel(title, series, over, scale, axis="log" if log else "linear")] if series else []


def _mean(values: Sequence[float], log: bool, bounds: tuple[float, float]) -> Interval:
    """Return the mean with its interval, the geometric one on a log scale."""
    if not log:
        return estimate_mean(values, bounds)
    of_logs = estimate_mean([math.log(value) for value in values])
    low, high = (
        None if end is None else math.exp(min(max(end, -FARTHEST), FARTHEST)) for end in (of_logs.low, of_logs.high)
    )
    return Interval(math.exp(of_logs.value), low, high, of_logs.n)


def _tracks(section: Section, track_of: Callable[[Run], Track]) -> Tracks:
    found = []
    for colour, row in drawn_arms(section):
        by_seed = {run.seed: track for run in finished(row) if (track := track_of(run))}
        found.append((colour, row, by_seed))
    return found


def _meters(run: Run) -> Mapping[str, Any]:
    return mapping((run.summary or {}).get("meters"))


def _curve(run: Run, meter: str) -> Mapping[str, Any]:
    return mapping(mapping(_meters(run).get(meter)).get("curve"))


def _over_steps(meter: str, figure: str, run: Run) -> Track:
    curve = _curve(run, meter)
    pairs = zip(numbers(curve.get("step")), numbers(curve.get(figure)), strict=False)
    return {step: value for step, value in pairs if math.isfinite(step) and math.isfinite(value)}


def _layer_rows(folder: str) -> LayerRows:
    """Return (meter, figure, layer, depth, axis) -> step -> value, as meters.csv has them; nothing without one."""
    with suppress(FileNotFoundError, RecordError):  # which `unread` tells
        return _read(folder, os.lstat(f"{folder}/meters.csv").st_mtime_ns)
    return {}


@lru_cache(maxsize=64)
def _read(folder: str, version: int) -> LayerRows:
    """Return them of a table that was last written at `version`, without what no axis can show. Errors: RecordError."""
    from bnlab.compare.frames import tables_of

    table = tables_of(folder, ["meters"])["meters"]
    found: dict[tuple[str, str, str, float, str], dict[float, float]] = {}
    columns = (table[key].tolist() for key in ("meter", "figure", "layer", "depth", "axis", "step", "value"))
    for meter, figure, layer, depth, axis, step, value in zip(*columns, strict=True):
        if finite(depth) is not None and finite(value) is not None:
            found.setdefault((meter, figure, layer, depth, axis), {})[step] = value
    return found


def _at(meter: str, figure: str, place: int, run: Run) -> Track:
    """Return depth -> value at the first (0) or the last (-1) reading."""
    rows = {
        key[3]: track
        for key, track in _layer_rows(str(run.folder)).items()
        if key[:2] == (meter, figure) and key[2] != "-" and key[4] == "-"
    }
    steps = sorted({step for track in rows.values() for step in track})
    if not steps:
        return {}
    at = {depth: track.get(steps[place], math.nan) for depth, track in rows.items()}
    return {depth: value for depth, value in at.items() if math.isfinite(value)}


def _band(run: Run, percentile: str) -> Track:
    """Return step -> a percentile of the first unit of the deepest layer that has bands."""
    units: Iterable[tuple[float, str, Mapping[float, float]]] = (
        (depth, axis, track)
        for (meter, figure, _, depth, axis), track in _layer_rows(str(run.folder)).items()
        if (meter, figure) == ("activations", percentile)
    )
    deepest = max(units, key=lambda unit: (unit[0], [-ord(c) for c in unit[1]]), default=None)
    return dict(sorted(deepest[2].items())) if deepest else {}
