"""Arms over the levels of a key that is a number, such as data.train_size: figures, slopes, and differences of slopes.

A slope is that of least squares within each seed, so that its interval is over seeds, and slopes of two arms are
compared seed by seed. Levels of a key of the data have data of their own each, and still stand in one table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeGuard

from bnlab.compare.arms import (
    MISSING,
    NOT_COMPARED,
    Arm,
    arms_of,
    data_names,
    differing_keys,
    key_of,
    sections_of,
    shared_settings,
    short_names,
    sort_key,
    text_of,
    where_of,
    without_duplicates,
)
from bnlab.compare.baseline import baselines, unknown_baseline
from bnlab.compare.comparison import Observed, estimate, find_runs, observe, unstarted
from bnlab.compare.deciding import Paired, Rule, Test, decide
from bnlab.compare.looked import Looked
from bnlab.compare.notes import BESIDE, environments_of, named
from bnlab.compare.pivot import DATA, Matrix
from bnlab.compare.result import Comparison, Row, Section
from bnlab.compare.slopes import FEWEST_LEVELS, NoSlope, slopes
from bnlab.data.dataset import target_of
from bnlab.errors import ConfigError, count_of
from bnlab.interval import Interval
from bnlab.metrics import Metric, find_metric
from bnlab.record.read import Run, trained, without_collector

LEAST_RATIO = 2.0  # of the largest level to the smallest, from which slopes are per doubling
Unit = Literal["doubling", "1"]


@dataclass(frozen=True)
class Levels(Matrix):
    """Arms down, the levels of a number across, with the slope of each arm."""

    per: Unit | None  # that slopes are per; None: there are none
    slopes: list[Interval | None]
    differences: list[Interval | None]  # of slopes from the baseline's, p corrected over the arms


@without_collector()
def compare_over(
    paths: Iterable[Path],
    word: str,
    *,
    by: Sequence[str] = (),
    baseline: str | None = None,
    metric: str = "test_accuracy",
    where: Sequence[str] = (),
    target: float | None = None,
    test: Test | None = None,
) -> tuple[list[Levels], Comparison]:
    """Compare all trainings under `paths` over the levels of the key that `word` means; the rest as for `compare`.

    Errors: ConfigError for an unknown metric, key, value or baseline, and where the runs of one level are on different
    data; RecordError without runs.
    """
    shown = find_metric(metric)
    found, skipped = find_runs(list(paths))
    runs = trained(found)
    kept = [run for run in where_of(where, runs) if not run.is_bench] if runs else []
    if not kept:
        raise ConfigError(f"--over {word}: there is no training here")
    key, keys = key_of(word, kept), [key_of(each, kept) for each in by]
    if key in NOT_COMPARED or key in keys or key == DATA:
        why = "data sets stand beside one another with --pivot" if key == DATA else "give another key"
        raise ConfigError(f"--over {word}: {key} is no factor that arms can be compared over\n{why}")
    parts = _parts(kept, key, word)
    built = [_Builder(part, key, keys, shown, baseline, target, test) for part in parts]
    if baseline is not None and not any(builder.has_baseline for builder in built):
        raise unknown_baseline(baseline, (arm for builder in built for arm in builder.arms))
    levels = [builder.levels(name) for builder, name in zip(built, data_names(parts), strict=True)]
    return levels, Comparison([each.section for each in levels], skipped, None, *unstarted(found))


def _parts(runs: Sequence[Run], key: str, word: str) -> list[list[Run]]:
    """Return what can stand in one table each: runs on data of one name, that differ at most from level to level.

    Errors: ConfigError where the runs of one level are on different data.
    """
    if not key.startswith("data."):
        return sections_of(runs)
    parts: dict[object, list[Run]] = {}
    marks: dict[object, set[object]] = {}
    for run in runs:
        name, mark = run.config.get(DATA), run.environment.get("data_fingerprint")
        parts.setdefault(name, []).append(run)
        seen = marks.setdefault((name, run.config.get(key, MISSING)), set())
        seen |= set() if mark is None else {mark}  # a run that ended early knows none
        if len(seen) > 1:
            differing = differing_keys([other for other in runs if other.config.get(DATA) == name])
            apart = [other for other in differing if other.startswith("data.") and other != key]
            way = f"keep one value of {named(apart)} with --where" if apart else "name the folder of one sweep"
            raise ConfigError(f"--over {word}: runs of one level are on different data named {text_of(name)}\n{way}")
    return [parts[name] for name in sorted(parts, key=text_of)]


@dataclass
class _Builder:
    """One table on its way from runs to figures."""

    runs: Sequence[Run]
    key: str
    by: Sequence[str]
    metric: Metric
    baseline: str | None
    target: float | None
    test: Test | None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runs, num_duplicates = without_duplicates(self.runs)
        if num_duplicates:
            self.notes.append(
                f"{count_of(num_duplicates, 'run')} left out: same configuration and seed as a later one."
            )
        if self.target is None:
            self.target = target_of(self.runs[0].config.get(DATA))
        if self.metric.kind != "mean" and self.target is None:
            raise ConfigError(f"{self.metric.name}: this data has no usual target\ngive one with --target, such as 0.9")
        keys = self.by or [k for k in arms_of(self.runs, first=[self.key])[1] if k != self.key]
        self.arms, self.changed = arms_of(self.runs, keys or ["norm.name"], apart=[self.key])
        against = baselines(self.arms, self.changed, self.baseline)
        self.has_baseline = against is not None
        self.baselines = against or [None] * len(self.arms)
        levels = {run.config.get(self.key, MISSING) for run in self.runs}
        self.columns: list[object] = sorted(levels, key=partial(sort_key, self.key))
        self.cells = [
            [[run for run in arm.runs if run.config.get(self.key, MISSING) == level] for level in self.columns]
            for arm in self.arms
        ]
        self.observed = [
            [observe(cell, self.metric, self.target) if cell else None for cell in cells] for cells in self.cells
        ]

    def levels(self, data: str) -> Levels:
        """Return the finished table, whose data has this name."""
        rows = [
            [
                self._row(i, cell, {} if seen is None else {self.metric.name: estimate(seen, self.metric)})
                if cell
                else None
                for cell, seen in zip(self.cells[i], self.observed[i], strict=True)
            ]
            for i in range(len(self.arms))
        ]
        per = self._unit()
        looked = Looked(self.test, baseline=self.baseline)
        own = [None if per is None else self._slope(i, per) for i in range(len(self.arms))]
        differences = self._differences(per, looked)
        only = self.changed[0] if len(self.changed) == 1 else "arm"
        named_by = [arm.values.get(only, MISSING) if only != "arm" else arm.label for arm in self.arms]
        settings = {k: v for k, v in shared_settings(self.runs).items() if k != self.key}
        section = Section(
            settings=settings,
            environments=environments_of(self.runs),
            changed=self.changed,
            main=self.metric.name,
            rows=[self._row(i, arm.runs, {}) for i, arm in enumerate(self.arms)],
            notes=[*filter(None, [looked.sentence()]), *self._missing(), *self._along(), *self.notes],
            target=self.target,
            data=data,
        )
        return Levels(section, (only, self.key), list(named_by), self.columns, rows, per, own, differences)

    def _row(self, i: int, runs: Sequence[Run], metrics: dict[str, Interval]) -> Row:
        part = Arm(self.arms[i].values, self.arms[i].label, list(runs))
        return Row(
            arm=part.values,
            label=part.label,
            n=len(part.done()),
            states=part.states(),
            is_baseline=i in self.baselines,
            metrics=metrics,
            vs_baseline={},
            curve=[],
            seeds=frozenset(run.seed for run in runs),
        )

    def _unit(self) -> Unit | None:
        """Return what slopes are per; None, with the reason in the notes, where there are none."""
        there = [level for level in self.columns if level is not MISSING]
        numbers = list(filter(_is_number, there))
        others = [text_of(level) for level in there if not _is_number(level)]
        if others:
            self.notes.append(f"No slopes: {self.key} is no number in all runs; it is {named(others)}.")
        elif len(numbers) < FEWEST_LEVELS:
            shown = named([text_of(level) for level in there])
            self.notes.append(f"No slopes: they need {FEWEST_LEVELS} levels of {self.key}, and there are {shown}.")
        elif min(numbers) > 0 and max(numbers) >= LEAST_RATIO * min(numbers):
            return "doubling"
        else:
            return "1"
        return None

    def _points(self, i: int, only: Sequence[int]) -> dict[int, list[tuple[float, float]]]:
        """Return level and value by seed, at the columns `only`. Errors: NoSlope for times that were cut."""
        points: dict[int, list[tuple[float, float]]] = {}
        for level, seen in ((self.columns[j], self.observed[i][j]) for j in only):
            if seen is None or not _is_number(level):
                continue
            for seed, value in seen.values.items():
                if math.isinf(value):
                    raise NoSlope("not every run reached the target")
                points.setdefault(seed, []).append((float(level), value))
        return points

    def _slopes(self, i: int, only: Sequence[int], per: Unit) -> dict[int, float]:
        is_log = per == "doubling"
        found = slopes(self._points(i, only), log_levels=is_log)
        return {seed: slope * math.log(2) for seed, slope in found.items()} if is_log else found

    def _slope(self, i: int, per: Unit) -> Interval | None:
        own = self._there(i)
        if not own:  # an arm without the key
            return None
        label, seeds = self.arms[i].label, {run.seed for run in self.arms[i].runs}
        try:
            by_seed = self._slopes(i, own, per)
        except NoSlope as error:
            self.notes.append(f"{label}: no slope, {error}.")
            return None
        if len(by_seed) < len(seeds):
            self.notes.append(
                f"{label}: the slope is over {len(by_seed)} of {len(seeds)} seeds, which have every level."
            )
        found = Paired(list(by_seed.values()), Rule(test=self.test or "t"), self._scale([i])).interval()
        return replace(found, p=None, num_lost=self._lost(i), is_beside=self._is_beside(i))

    def _differences(self, per: Unit | None, looked: Looked) -> list[Interval | None]:
        """Return each slope minus its baseline's, over the levels and seeds that both have; p corrected over arms."""
        against = [(i, j) for i, j in enumerate(self.baselines) if per and j is not None and j != i]
        found: list[Interval | None] = [None] * len(self.arms)
        decided = decide([self._pair(i, j, per, looked) for i, j in against if per], None)
        for (i, _), (difference, _) in zip(against, decided, strict=True):
            found[i] = difference
        return found

    def _pair(self, i: int, j: int, per: Unit, looked: Looked) -> Paired | None:
        shared = [k for k in self._there(i) if k in self._there(j)]
        try:
            own, other = self._slopes(i, shared, per), self._slopes(j, shared, per)
        except NoSlope:
            return None
        seeds = sorted(own.keys() & other.keys())
        if not seeds:
            return None
        if len(shared) < len({*self._there(i), *self._there(j)}):
            levels = named([text_of(self.columns[k]) for k in shared])
            self.notes.append(f"{self.arms[i].label}: the difference is of slopes over the levels of both, {levels}.")
        rule, _ = looked.rule((self.arms[i].runs, self.arms[j].runs), self.metric, False)
        pair = Paired([own[s] - other[s] for s in seeds], rule, self._scale([i, j]))
        lost = self._lost(i) + self._lost(j)
        is_beside = self._is_beside(i) or self._is_beside(j)
        return replace(pair, num_lost=lost, is_open=bool(lost and pair.mean) or is_beside)

    def _there(self, i: int) -> list[int]:
        """Return the columns that have a level, and runs of this arm."""
        return [j for j, level in enumerate(self.columns) if level is not MISSING and self.cells[i][j]]

    def _seen(self, i: int) -> list[Observed]:
        return [seen for seen in self.observed[i] if seen is not None]

    def _scale(self, arms: Sequence[int]) -> float:
        return max((abs(v) for i in arms for seen in self._seen(i) for v in seen.values.values()), default=0.0)

    def _lost(self, i: int) -> int:
        return sum(seen.num_lost for seen in self._seen(i))

    def _is_beside(self, i: int) -> bool:
        return any(seen.is_beside for seen in self._seen(i))

    def _missing(self) -> list[str]:
        """Name the cells without a run, of arms that have the key."""
        name = short_names([self.key])[self.key]
        gaps = [
            f"{arm.label} at {name}={text_of(level)}"
            for i, arm in enumerate(self.arms)
            if self._there(i)
            for level, cell in zip(self.columns, self.cells[i], strict=True)
            if not cell and level is not MISSING
        ]
        lost = sum(map(self._lost, range(len(self.arms))))
        return [
            *([f"No run: {named(gaps)}."] if gaps else []),
            *([f"†: over the runs that are left; {count_of(lost, 'run')} of this figure lost."] if lost else []),
            *([BESIDE] if any(map(self._is_beside, range(len(self.arms)))) else []),
        ]

    def _along(self) -> list[str]:
        """Say what differs within an arm beside the key, and is no arm of its own."""
        inside = dict.fromkeys(key for arm in self.arms for key in arm.pooled if key != self.key)
        if not inside:
            return []
        if self.by:
            return [f"Runs that differ in {named(list(inside))} are pooled; each seed counts once, with their mean."]
        return [f"Differs from level to level too, so that a slope may be one of it: {named(list(inside))}."]


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
