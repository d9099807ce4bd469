"""Runs on disk -> arms against a baseline, paired by seed, with intervals and the notes a reader needs.

    comparison = compare([Path("runs")], where=["data=mnist"], target=0.98)
    for row in comparison.sections[0].rows:
        print(row.label, row.n, row.metrics["test_accuracy"].center)

Means are over finished runs; a run that diverged, failed or was killed counts in its arm's states. Nothing is chosen on
the test split here. Runs on different data are never compared: each data set is a section of its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bnlab.compare.arms import arms_of, find_key, sections_of, shared_settings, where_of, without_duplicates
from bnlab.compare.baseline import baselines
from bnlab.compare.notes import Evidence, environments_of, notes_on
from bnlab.compare.read import Run, read_runs, without_collector
from bnlab.compare.result import Comparison, Difference, Estimate, Row, Section
from bnlab.compare.statistics import Paired, estimate_mean, estimate_median, holm, paired_difference, restrict
from bnlab.errors import ConfigError, RecordError, did_you_mean
from bnlab.measure.metrics import TARGETS, Censored, Metric, find_metric, step_ratio_interval

DEFAULT_METRICS = ("test_accuracy", "steps_to_target", "seconds_to_target", "step_ms", "acc_gap", "flip_rate")
RATIO = "step_ratio"  # is to the baseline already
BENCH_METRICS = (RATIO, "step_ms", "images_per_second")


@without_collector()
def compare(
    paths: Iterable[Path],
    *,
    by: Sequence[str] = (),
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    where: Sequence[str] = (),
    sort: str | None = None,
    target: float | None = None,
) -> Comparison:
    """Compare all runs under `paths`; the first of `metrics` is the main one.

    `by` groups by these keys alone, `where` keeps runs (`norm=batch,ghost`), `sort` is a metric (best first) or `arm`,
    `target` is a validation accuracy as a fraction and replaces the data set's usual one.

    Errors: ConfigError for an unknown metric, key, value or baseline; RecordError when there is no run folder at all.
    """
    paths = list(paths)
    asked = [find_metric(name) for name in metrics or ()]
    ranked = [find_metric(sort)] if sort not in (None, "arm") else []
    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target {target:g}: must be a fraction above 0 and at most 1, such as 0.98")
    runs, skipped = read_runs(paths)
    if not runs and not skipped:
        places = ", ".join(map(str, paths))
        raise RecordError(f"no runs in {places}\nstart one with `bnlab train`, or give the folder that has them")
    kept = where_of(where, runs) if runs else []
    known = {key: None for run in runs for key in run.config}
    keys = [find_key(word, known) for word in by] if runs else []
    built = [
        _Builder(part, keys, baseline, _columns(asked, ranked, part), target, explicit=metrics is not None)
        for part in sections_of(kept)
    ]
    if baseline is not None and built and not any(builder.has_baseline for builder in built):
        labels = [arm.label for builder in built for arm in builder.arms]
        raise ConfigError(
            f"--baseline {baseline}: no such arm{did_you_mean(baseline, labels)}\nthere are: {', '.join(labels[:12])}"
        )
    return Comparison([builder.section(sort) for builder in built], skipped)


def _columns(asked: Sequence[Metric], ranked: Sequence[Metric], runs: Sequence[Run]) -> list[Metric]:
    """Return the metrics of a section: those asked for or the usual ones, and the one to sort by."""
    usual = BENCH_METRICS if runs[0].is_bench else DEFAULT_METRICS
    return list(dict.fromkeys([*(asked or map(find_metric, usual)), *ranked]))


@dataclass
class Observed:
    """One metric of one arm, by seed; `math.inf` where a target was not reached by `limits[seed]`."""

    values: dict[int, float] = field(default_factory=dict)
    limits: dict[int, float] = field(default_factory=dict)
    num_unmeasured: int = 0
    within: tuple[float, float] | None = None  # the interval that a bench gives to the ratio of its only run


def observe(runs: Sequence[Run], metric: Metric, target: float | None) -> Observed:
    """Derive `metric` from finished runs; several runs of a seed (pooled by `--by`) give the mean over them."""
    by_seed: dict[int, list[float]] = {}
    found = Observed()
    for run in runs:
        value = metric.derive(run.summary or {}, target)
        if isinstance(value, Censored):
            found.limits[run.seed] = max(value.at, found.limits.get(run.seed, 0.0))
            value = math.inf
        elif value is None or not math.isfinite(value):
            found.num_unmeasured += 1
            continue
        by_seed.setdefault(run.seed, []).append(value)
    found.values = {seed: v[0] if len(v) == 1 else statistics.fmean(v) for seed, v in by_seed.items()}
    if metric.name == RATIO and sum(map(len, by_seed.values())) == 1:
        found.within = next(filter(None, (step_ratio_interval(run.summary or {}) for run in runs)), None)
    return found


class _Builder:
    """One section on its way from runs to rows."""

    def __init__(
        self,
        runs: Sequence[Run],
        by: Sequence[str],
        baseline: str | None,
        columns: Sequence[Metric],
        target: float | None,
        explicit: bool,
    ) -> None:
        self.runs, self.num_duplicates = without_duplicates(runs)
        self.arms, self.changed = arms_of(self.runs, by)
        found = baselines(self.arms, self.changed, baseline)
        self.has_baseline = found is not None
        self.mates = found or [None] * len(self.arms)
        self.target = TARGETS.get(str(runs[0].config.get("data.name"))) if target is None else target
        usable = [m for m in columns if m.kind == "mean" or self.target is not None]
        self.without_target = [m.name for m in columns if m not in usable] if explicit else []
        self.columns = usable
        if not usable:
            raise ConfigError(f"{columns[0].name}: this data has no usual target\ngive one with --target, such as 0.9")
        self.observed = [{m.name: observe(arm.done(), m, self.target) for m in self.columns} for arm in self.arms]

    def section(self, sort: str | None) -> Section:
        """Return the finished section."""
        pairs = self._pairs()
        corrected = self._corrected(pairs)
        rows = [self._row(i, corrected[i]) for i in range(len(self.arms))]
        if sort not in (None, "arm") and any(m.name == sort for m in self.columns):
            rows.sort(key=lambda row: _rank(row, find_metric(str(sort))))
        main = self.columns[0].name
        evidence = Evidence(
            runs=self.runs,
            arms=self.arms,
            rows=rows,
            changed=self.changed,
            columns=self.columns,
            pairs={arm.label: found[main] for arm, found in zip(self.arms, pairs, strict=True) if main in found},
            num_duplicates=self.num_duplicates,
            unmeasured=self._unmeasured(),
            has_baseline=self.has_baseline,
            without_target=self.without_target,
        )
        return Section(
            settings=shared_settings(self.runs),
            environments=environments_of(self.runs),
            changed=self.changed,
            main=main,
            rows=rows,
            notes=notes_on(evidence),
            is_bench=self.runs[0].is_bench,
            target=self.target,
        )

    def _row(self, i: int, vs_baseline: dict[str, Difference]) -> Row:
        arm = self.arms[i]
        done = arm.done()
        return Row(
            arm=arm.values,
            label=arm.label,
            n=len(done),
            states=arm.states(),
            is_baseline=any(map(_is_reference, done)) if self.runs[0].is_bench else i in self.mates,
            metrics={m.name: _estimate(self.observed[i][m.name], m) for m in self.columns},
            vs_baseline=vs_baseline,
            curve=_median_curve(done, self.columns[0]),
        )

    def _pairs(self) -> list[dict[str, Paired]]:
        """Compare each arm with its baseline over the seeds of both, metric by metric."""
        found: list[dict[str, Paired]] = []
        for i, mate in enumerate(self.mates):
            pairs: dict[str, Paired] = {}
            if mate is not None and mate != i:
                for metric in (m for m in self.columns if m.name != RATIO):
                    pair = _paired(self.observed[i][metric.name], self.observed[mate][metric.name])
                    if pair is not None:
                        pairs[metric.name] = pair
            found.append(pairs)
        return found

    def _corrected(self, pairs: Sequence[dict[str, Paired]]) -> list[dict[str, Difference]]:
        """Return what the table shows: p corrected over the arms of this section, for each metric apart."""
        shown: list[dict[str, Difference]] = [{} for _ in pairs]
        for metric in self.columns:
            with_it = [i for i, found in enumerate(pairs) if metric.name in found]
            for i, p in zip(with_it, holm([pairs[i][metric.name].p for i in with_it]), strict=True):
                shown[i][metric.name] = pairs[i][metric.name].difference(p)
        return shown

    def _unmeasured(self) -> dict[str, int]:
        counts = {m.name: sum(found[m.name].num_unmeasured for found in self.observed) for m in self.columns}
        return {name: count for name, count in counts.items() if count}


def _is_reference(run: Run) -> bool:
    """Whether a run was the baseline of its bench."""
    bench = (run.summary or {})["bench"]
    return bench.get("arm") is not None and bench.get("arm") == bench.get("baseline")


def _paired(arm: Observed, baseline: Observed) -> Paired | None:
    seeds = sorted(arm.values.keys() & baseline.values.keys())
    values, others = [arm.values[s] for s in seeds], [baseline.values[s] for s in seeds]
    if not any(map(math.isfinite, (*values, *others))):
        return None  # neither arrived: nothing is known of the difference
    limits = [found.limits[s] for found in (arm, baseline) for s in seeds if s in found.limits]
    return paired_difference(restrict(values, limits), restrict(others, limits))


def _estimate(found: Observed, metric: Metric) -> Estimate:
    values = list(found.values.values())
    if found.within is not None and found.within[0] < found.within[1]:
        return Estimate(values[0], *found.within, 1, 1, kind="median")
    if metric.kind == "mean":
        return estimate_mean(values)
    return estimate_median(values, max(found.limits.values(), default=None))


def _rank(row: Row, metric: Metric) -> tuple[int, float]:
    """Sort key: best first; then arms whose target was not reached, then arms without a figure."""
    estimate = row.metrics[metric.name]
    if estimate.center is None:
        return (1 if estimate.n else 2, 0.0)
    return (0, -estimate.center if metric.better == "higher" else estimate.center)


def _median_curve(runs: Sequence[Run], metric: Metric) -> list[float]:
    """Return the median over runs of the curve behind `metric`, at the steps where all of them were evaluated."""
    curves = [run.summary["curve"] for run in runs if run.summary]
    if metric.curve is None or not curves:
        return []
    tracks = [dict(zip(c.get("step", ()), c.get(metric.curve, ()), strict=False)) for c in curves]
    steps = set(tracks[0]).intersection(*tracks[1:])
    points = ([v for track in tracks if math.isfinite(v := track[step])] for step in sorted(steps))
    return [statistics.median(values) for values in points if values]
