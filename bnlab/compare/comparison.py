"""Runs on disk -> arms against a baseline, paired by seed, with intervals and the notes a reader needs.

    comparison = compare([Path("runs")], where=["data=mnist"], target=0.98)
    for row in comparison.sections[0].rows:
        print(row.label, row.n, row.metrics["test_accuracy"].value)

Means are over finished runs, and say of how many; a run that diverged, failed or was killed counts in its arm's states,
and to a target it never arrives. No difference is decided by runs that are missing on its side. Nothing is chosen on
the test split here: `best_of` chooses on validation. Runs on different data are never compared: each data set is a
section of its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bnlab.compare.arms import (
    NOT_COMPARED,
    arms_of,
    data_names,
    key_of,
    sections_of,
    shared_settings,
    where_of,
    without_duplicates,
)
from bnlab.compare.baseline import baselines, unknown_baseline
from bnlab.compare.best import choose, notes_on_choice, pairs_of_settings, refuse_without_choice
from bnlab.compare.deciding import Paired, Rule, Test, Verdict, decide
from bnlab.compare.looked import Looked, of_last_look
from bnlab.compare.notes import Evidence, environments_of, notes_on
from bnlab.compare.pivot import check_pivot, pivot_keys, refuse_more_keys
from bnlab.compare.result import Comparison, Row, Section
from bnlab.compare.statistics import estimate_mean, estimate_median, holm, restrict, sign_test
from bnlab.config.files import defaults
from bnlab.data.dataset import target_of, test_images_of
from bnlab.errors import ConfigError, RecordError, count_of
from bnlab.interval import Interval
from bnlab.metric import LARGEST
from bnlab.metrics import Censored, Metric, end_of, evaluation_before, find_metric, step_ratio_interval
from bnlab.record.latest import of_claims
from bnlab.record.read import Run, evaluated, read_runs, refusals, trained, without_collector

DEFAULT_METRICS = ("test_accuracy", "steps_to_target", "seconds_to_target", "step_ms", "acc_gap", "flip_rate")
LEARNED = find_metric("learned")
RATIO = "step_ratio"  # is to the baseline already
MOST_IMAGES = 10**12  # more are of a damaged record
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
    best_of: Sequence[str] = (),
    pivot: str | None = None,
    margin: float | None = None,
    test: Test | None = None,
    of: Sequence[Run] | None = None,
    with_evaluated: bool = False,
) -> Comparison:
    """Compare all runs under `paths`, or the runs `of`; the first of `metrics` is the main one.

    `by` groups by these keys alone, `where` keeps runs (`norm=batch,ghost`), `sort` is a metric (best first) or `arm`,
    `target` is a validation accuracy as a fraction and replaces the data set's usual one. `best_of` are keys of which
    each arm keeps its best setting only. `pivot` (`normxmodel`) makes arms of two keys, to be read as a matrix of one
    metric, without a baseline. `with_evaluated`: what runs came to under other settings of evaluation is beside them.
    `margin` is the smallest difference of the main metric that matters, in its unit; `test` is Student's t or the
    permutation of signs.

    Errors: ConfigError for an unknown metric, key, value or baseline, for a choice that cannot be made and for a matrix
    with a third key; RecordError when there is no run folder at all.
    """
    paths = list(paths)
    asked = [find_metric(name) for name in metrics or ()]
    ranked = [find_metric(sort)] if sort not in (None, "arm") else []
    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target {target:g}: must be a fraction above 0 and at most 1, such as 0.98")
    if pivot is not None:
        check_pivot(pivot, baseline, sort, metrics or ())
    found, skipped = find_runs(paths) if of is None else (list(of), [])
    runs = trained(found)
    runs += [each for run in runs for each in evaluated(run)] if with_evaluated else []
    kept = where_of(where, runs) if runs else []
    axes = pivot_keys(pivot, runs) if pivot is not None and runs else None
    keys = [key_of(word, runs) for word in by] if runs else []
    plan = _Plan(
        by=list(dict.fromkeys([*(axes or ()), *keys])) if keys else [],
        best_of=list(dict.fromkeys(key_of(word, runs) for word in best_of)) if runs else [],
        axes=axes,
        baseline=baseline,
        target=target,
        explicit=metrics is not None,
        margin=margin,
        test=test,
    )
    plan.check()
    last = 1 if axes is not None else None  # a matrix shows one metric
    parts = sections_of(kept)
    built = [_Builder(part, plan, _columns(asked, ranked, part)[:last]) for part in parts]
    if built:
        refuse_without_choice([choice for builder in built for choice in builder.choices], plan.best_of, kept)
    if axes is not None and pivot is not None:
        refuse_more_keys(pivot, axes, [(builder.changed, builder.runs) for builder in built])
    if baseline is not None and built and not any(builder.has_baseline for builder in built):
        raise unknown_baseline(baseline, (arm for builder in built for arm in builder.arms))
    sections = [replace(each.section(sort), data=name) for each, name in zip(built, data_names(parts), strict=True)]
    return Comparison(sections, skipped, axes, *unstarted(found))


def unstarted(found: Sequence[Run]) -> tuple[int, int, list[str]]:
    """Return how many jobs are queued and how many were not needed, and why others were refused."""
    states = [run.state for run in found]
    return states.count("queued"), states.count("not needed"), refusals(found)


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Read all runs under `paths`, as `read_runs` does. Errors: RecordError where none was started."""
    found, skipped = read_runs(paths)
    if not trained(found) and not skipped:
        places = ", ".join(map(str, paths))
        if refused := refusals(found):
            raise RecordError(f"{places}: no run was trained\n{refused[0]}")
        if found:
            queued = count_of(len(found), "job")
            raise RecordError(f"{places}: {queued} queued, none was started\n`bnlab resume` does what is queued")
        way = f"start one with `bnlab train`, or give the folder that has them{of_claims()}"
        raise RecordError(f"no runs in {places}\n{way}")
    return _of_one_age(found), skipped


def _of_one_age(runs: Sequence[Run]) -> list[Run]:
    """Return runs of which the older have the keys that came after them, as the newer name them, at their defaults.

    A new key changes nothing at its default, so that runs of both ages are one arm.
    """
    named = set[str]().union(*(run.config for run in runs))
    usual: dict[tuple[tuple[str, object], ...], dict[str, Any]] = {}
    aged = []
    for run in runs:
        if lacking := named - run.config.keys():
            options = {key.removesuffix(".name"): value for key, value in run.config.items() if key.endswith(".name")}
            if (chosen := tuple(options.items())) not in usual:
                usual[chosen] = defaults(options)
            added = {key: usual[chosen][key] for key in lacking if key in usual[chosen]}
            run = replace(run, config=run.config | added) if added else run
        aged.append(run)
    return aged


def _columns(asked: Sequence[Metric], ranked: Sequence[Metric], runs: Sequence[Run]) -> list[Metric]:
    """Return the metrics of a section: those asked for or the usual ones, and the one to sort by."""
    usual = BENCH_METRICS if runs[0].is_bench else DEFAULT_METRICS
    return list(dict.fromkeys([*(asked or map(find_metric, usual)), *ranked]))


@dataclass(frozen=True)
class _Plan:
    """What is asked of every section; all keys in full."""

    by: list[str]
    best_of: list[str]
    axes: tuple[str, str] | None  # of a matrix
    baseline: str | None
    target: float | None
    explicit: bool  # the metrics were named
    margin: float | None
    test: Test | None

    def check(self) -> None:
        """Raise ConfigError for a key that cannot be chosen, or is to be compared too."""
        for key in NOT_COMPARED.intersection(self.best_of):
            raise ConfigError(f"--best-of {key}: this is no setting of the training, so none of its values is the best")
        both = [key for key in self.best_of if key in (*self.by, *(self.axes or ()))]
        if both:
            raise ConfigError(
                f"--best-of {both[0]}: this key tells the arms apart; it can be compared or chosen, not both"
            )


@dataclass
class Observed:
    """One metric of one arm, by seed; `math.inf` where a target was not reached by `limits[seed]`."""

    values: dict[int, float] = field(default_factory=dict)
    limits: dict[int, float] = field(default_factory=dict)
    num_unmeasured: int = 0  # finished runs without a finite value
    num_lost: int = 0  # all runs without one
    num_diverged: int = 0  # of these
    ends: dict[int, float] = field(default_factory=dict)  # of finished runs: how long they were watched
    before: dict[int, float] = field(default_factory=dict)  # the evaluation before the value
    limit: float | None = None  # the largest time at which a run ended, or would have, without arriving
    images: int | None = None  # that the value is a share of
    is_beside: bool = False  # a clock read it of runs that ran while others did
    within: tuple[float, float] | None = None  # the interval that a bench gives to the ratio of its only run


def _images(run: Run, metric: Metric) -> int | None:
    """Return of how many images the metric is a share in this run; None where that is not known, or it is none."""
    if metric.split is None:
        return None
    recorded = (run.summary or {}).get("samples")
    number = recorded.get(metric.split) if isinstance(recorded, dict) else None
    if number is None:  # of an older run
        by_name = {"test": test_images_of(run.config.get("data.name")), "valid": run.config.get("data.valid_size")}
        number = by_name.get(metric.split)
    return number if isinstance(number, int) and 0 < number <= MOST_IMAGES else None


def observe(runs: Sequence[Run], metric: Metric, target: float | None) -> Observed:
    """Derive `metric` from finished runs; several runs of a seed (pooled by `--by`) give the mean over them.

    A run that diverged has only its times to a target: one that it had not reached it never will.
    """
    by_seed: dict[int, list[float]] = {}
    before: dict[int, list[float]] = {}
    observed = Observed()
    for run in runs:
        is_done, summary = run.state == "done", run.summary or {}
        if not is_done and not (metric.of_diverged and run.state == "diverged"):
            observed.num_lost += 1
            observed.num_diverged += run.state == "diverged"
            continue
        value = metric.derive(summary, target)
        if is_done and metric.axis is not None:
            observed.ends[run.seed] = min(end_of(summary, metric), observed.ends.get(run.seed, math.inf))
        if isinstance(value, Censored):
            observed.limit = max(value.at, observed.limit or 0.0)
            if is_done:
                observed.limits[run.seed] = max(value.at, observed.limits.get(run.seed, 0.0))
            value = math.inf
        elif value is None or not abs(value) <= LARGEST:
            observed.num_lost += 1
            observed.num_unmeasured += is_done
            continue
        by_seed.setdefault(run.seed, []).append(value)
        if metric.axis is not None:
            is_known = is_done or value < math.inf
            before.setdefault(run.seed, []).append(evaluation_before(summary, metric, value) if is_known else math.inf)
    observed.values, observed.before = (
        {seed: v[0] if len(v) == 1 else statistics.fmean(v) for seed, v in each.items()} for each in (by_seed, before)
    )
    if observed.limit is not None and not observed.limits:  # only runs that diverged, which will not arrive by the end
        observed.limit = max(observed.limit, *observed.ends.values(), 0.0)
    observed.is_beside = metric.is_timed and any(run.is_beside for run in runs)
    observed.images = min((n for run in runs if (n := _images(run, metric)) is not None), default=None)
    if metric.name == RATIO and sum(map(len, by_seed.values())) == 1:
        observed.within = next(filter(None, (step_ratio_interval(run.summary or {}) for run in runs)), None)
    return observed


class _Builder:
    """One section on its way from runs to rows."""

    def __init__(
        self,
        runs: Sequence[Run],
        plan: _Plan,
        columns: Sequence[Metric],
    ) -> None:
        self.runs, self.num_duplicates = without_duplicates(runs)
        self.best_of = [] if runs[0].is_bench else plan.best_of  # a bench has no validation split to choose on
        self.is_matrix = plan.axes is not None
        self.arms, self.changed = arms_of(self.runs, plan.by, apart=self.best_of, first=plan.axes or ())
        self.choices = choose(self.arms, self.best_of) if self.best_of else []
        if self.choices:
            read = {id(run) for arm in self.arms for run in arm.runs}
            self.runs = [run for run in self.runs if id(run) in read]
        self.looked, self.margin = Looked(plan.test, plan.margin, plan.baseline), plan.margin
        decided_by = self.looked.plan_of(self.runs)
        wanted = decided_by.baseline if decided_by is not None and plan.baseline is None else plan.baseline
        against = None if self.is_matrix else baselines(self.arms, self.changed, wanted)
        self.has_baseline = against is not None
        self.baselines = against or [None] * len(self.arms)
        self.target = target_of(runs[0].config.get("data.name")) if plan.target is None else plan.target
        if decided_by is not None and not plan.explicit:
            columns = list(dict.fromkeys([find_metric(decided_by.metric), *columns]))
        usable = [m for m in columns if m.kind == "mean" or self.target is not None]
        self.without_target = [m.name for m in columns if m not in usable] if plan.explicit else []
        self.columns = usable
        if not usable:
            raise ConfigError(f"{columns[0].name}: this data has no usual target\ngive one with --target, such as 0.9")
        self.observed = [{m.name: observe(arm.runs, m, self.target) for m in self.columns} for arm in self.arms]
        self.learned = [observe(arm.runs, LEARNED, None).values for arm in self.arms]

    def section(self, sort: str | None) -> Section:
        """Return the finished section."""
        ps = self._ps_learned()
        rows = [self._row(i, *of_arm, ps.get(i)) for i, of_arm in enumerate(self._differences())]
        if sort not in (None, "arm") and any(m.name == sort for m in self.columns):
            rows.sort(key=lambda row: _rank(row, find_metric(str(sort))))
        main = self.columns[0].name
        steps = {(run.summary or {}).get("steps") for arm in self.arms for run in arm.done()}
        evidence = Evidence(
            runs=self.runs,
            environments=environments_of(self.runs),
            arms=self.arms,
            rows=rows,
            changed=self.changed,
            columns=self.columns,
            num_duplicates=self.num_duplicates,
            unmeasured=self._unmeasured(),
            has_baseline=self.has_baseline,
            without_target=self.without_target,
            chosen=self.best_of,
            is_matrix=self.is_matrix,
            images=min((n for each in self.observed if (n := each[main].images)), default=None),
            looked=self.looked,
        )
        return Section(
            settings={key: v for key, v in shared_settings(self.runs).items() if key not in self.best_of},
            environments=evidence.environments,
            changed=self.changed,
            main=main,
            rows=rows,
            notes=[*notes_on_choice(self.choices, self.best_of, self.columns), *notes_on(evidence)],
            is_bench=self.runs[0].is_bench,
            target=self.target,
            chosen=self.best_of,
            margin=self.margin,
            is_planned=self.looked.is_planned,
            steps=steps.pop() if len(steps) == 1 else None,
            level=self.looked.level,
            next_level=self.looked.next_level,
            test=self.looked.test or "t",
        )

    def _row(
        self, i: int, vs_baseline: dict[str, Interval], verdicts: dict[str, Verdict], p_learned: float | None
    ) -> Row:
        arm, against = self.arms[i], self.baselines[i]
        done = arm.done()
        return Row(
            arm=arm.values,
            label=arm.label,
            n=len(done),
            states=arm.states(),
            is_baseline=any(map(_is_reference, done)) if self.runs[0].is_bench else i in self.baselines,
            metrics={m.name: estimate(self.observed[i][m.name], m) for m in self.columns},
            vs_baseline=vs_baseline,
            curve=_median_curve(done, self.columns[0]),
            best=arm.best,
            seeds=frozenset(run.seed for run in arm.runs),
            verdicts=verdicts,
            against="" if against is None else self.arms[against].label,
            runs=arm.runs,
            learned=(sum(share == 1 for share in self.learned[i].values()), len(self.learned[i])),
            p_learned=p_learned,
            num_unlearned=sum(LEARNED.derive(run.summary or {}) == 0 for run in done),
        )

    def _differences(self) -> list[tuple[dict[str, Interval], dict[str, Verdict]]]:
        """Compare each arm with its baseline over the seeds of both; p is corrected over the arms, metric by metric.

        Before that it is corrected for the looks, and for a choice of settings that was larger on one side.
        """
        found: list[tuple[dict[str, Interval], dict[str, Verdict]]] = [({}, {}) for _ in self.arms]
        for metric in (metric for metric in self.columns if metric.name != RATIO):
            against = [(i, j) for i, j in enumerate(self.baselines) if j is not None and j != i]
            pairs = [self._pair(i, j, metric) for i, j in against]
            for (i, _), (difference, verdict) in zip(against, decide(pairs, metric.better), strict=True):
                if difference is not None:
                    found[i][0][metric.name] = difference
                    found[i][1][metric.name] = verdict
        return found

    def _ps_learned(self) -> dict[int, float | None]:
        """Return by arm the p that it learns as often as its baseline, by the same corrections."""
        ps = {}
        for i, j in ((i, j) for i, j in enumerate(self.baselines) if j is not None and j != i):
            pairs = [
                (self.learned[i][seed], self.learned[j][seed]) for seed in self.learned[i].keys() & self.learned[j]
            ]
            p = sign_test(sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))
            rule, _ = self.looked.rule((self.arms[i].runs, self.arms[j].runs), LEARNED, False)
            ps[i] = min(1.0, rule.sequential(p) * pairs_of_settings(self.choices, i, j))
        return dict(zip(ps, holm(list(ps.values())), strict=True))

    def _pair(self, i: int, j: int, metric: Metric) -> Paired | None:
        """Return the differences of arm i from arm j, in a planned sweep those up to the last look that is over."""
        sides = self.arms[i].runs, self.arms[j].runs
        is_main = metric is self.columns[0]
        rule, seeds = self.looked.rule(sides, metric, is_main)
        if is_main and rule.margin is not None:
            self.margin = rule.margin * metric.scale
        counted = None if seeds is None else of_last_look(seeds, rule.looks, sides)
        arm, baseline = self.observed[i][metric.name], self.observed[j][metric.name]
        pair = _paired(arm, baseline, metric, rule, counted)
        is_early = (seeds is not None and counted is None) or arm.is_beside or baseline.is_beside
        times = pairs_of_settings(self.choices, i, j)
        return pair and replace(pair, is_open=pair.is_open or is_early, times=times)

    def _unmeasured(self) -> dict[str, int]:
        counts = {m.name: sum(observed[m.name].num_unmeasured for observed in self.observed) for m in self.columns}
        return {name: count for name, count in counts.items() if count}


def _is_reference(run: Run) -> bool:
    """Whether a run was the baseline of its bench."""
    bench = (run.summary or {})["bench"]
    return bench.get("arm") is not None and bench.get("arm") == bench.get("baseline")


def _paired(arm: Observed, baseline: Observed, metric: Metric, rule: Rule, counted: set[int] | None) -> Paired | None:
    seeds = sorted(arm.values.keys() & baseline.values.keys())
    seeds = seeds if counted is None else [s for s in seeds if s in counted]
    values, others = [arm.values[s] for s in seeds], [baseline.values[s] for s in seeds]
    if metric.axis is None:
        step = max((1 / side.images for side in (arm, baseline) if side.images), default=0.0)
        pair = Paired.of(values, others, rule, step=step) if seeds else None
        return pair and _survived(pair, arm, baseline, metric)
    if not any(map(math.isfinite, (*values, *others))):
        return None  # neither arrived: nothing is known of the difference
    limits = [side.limits[s] for side in (arm, baseline) for s in seeds if s in side.limits]
    if not limits and not all(map(math.isfinite, (*values, *others))):  # only runs that diverged did not arrive
        limits = [side.ends[s] for side in (arm, baseline) for s in seeds if s in side.ends]
        limits = limits or [max(filter(math.isfinite, (*values, *others)))]
    cut, cut_others = restrict(values, limits), restrict(others, limits)
    slack = [
        statistics.fmean(
            time - early for time, early in zip(times, restrict([of[s] for s in seeds], limits), strict=True)
        )
        for times, of in ((cut, arm.before), (cut_others, baseline.before))
    ]
    return Paired.of(cut, cut_others, rule, (slack[0], slack[1]))


def _survived(pair: Paired, arm: Observed, baseline: Observed, metric: Metric) -> Paired:
    """Take the p from a difference in favour of the side that has no value for some of its runs: they might undo it."""
    lost = [side.num_diverged + side.num_unmeasured for side in (arm, baseline)]
    favoured = 0 if (pair.mean > 0) == (metric.better == "higher") else 1
    doubtful = any(lost) if metric.better is None else lost[favoured]
    return replace(pair, is_open=bool(doubtful and pair.mean), num_lost=arm.num_lost + baseline.num_lost)


def estimate(observed: Observed, metric: Metric) -> Interval:
    """Return the mean over seeds, of a time to a target the median, with its interval."""
    values = list(observed.values.values())
    if observed.within is not None and observed.within[0] < observed.within[1]:
        return Interval(values[0], *observed.within, 1, kind="median")
    if metric.axis is None:
        found = estimate_mean(values, metric.bounds, observed.images, metric.is_skewed)
    else:
        found = estimate_median(values, observed.limit, list(observed.before.values()))
    return replace(found, num_lost=observed.num_lost, is_beside=observed.is_beside)


def _rank(row: Row, metric: Metric) -> tuple[int, float]:
    """Sort key: best first; then arms that lost runs, whose target was not reached, and without a figure."""
    estimate = row.metrics[metric.name]
    if math.isnan(estimate.value):
        return (2 if estimate.n else 3, 0.0)
    return (int(estimate.num_lost > 0), -estimate.value if metric.better == "higher" else estimate.value)


def _median_curve(runs: Sequence[Run], metric: Metric) -> list[float]:
    """Return the median over runs of the curve behind `metric`, at the steps where all of them were evaluated."""
    steps, tracks = _tracks(runs, metric)
    points = ([v for track in tracks if math.isfinite(v := track[step])] for step in steps)
    return [statistics.median(values) for values in points if values]


def mean_curve(runs: Sequence[Run], metric: Metric) -> tuple[list[float], list[Interval]]:
    """Return the steps at which all `runs` were evaluated, and there the mean over seeds of the curve behind `metric`.

    The last of them is what a table has of `metric`, if the runs are the finished ones of an arm.
    """
    recorded = [run for run in runs if run.summary]
    steps, tracks = _tracks(recorded, metric)
    images = min((n for run in recorded if (n := _images(run, metric)) is not None), default=None)
    means = []
    for step in steps:
        by_seed: dict[int, list[float]] = {}
        for run, track in zip(recorded, tracks, strict=True):
            if math.isfinite(track[step]):
                by_seed.setdefault(run.seed, []).append(track[step])
        values = {seed: statistics.fmean(each) for seed, each in by_seed.items()}
        means.append(estimate(Observed(values, images=images), metric))
    return steps, means


def _tracks(runs: Sequence[Run], metric: Metric) -> tuple[list[float], list[dict[float, float]]]:
    """Return the steps at which all runs were evaluated, and by run the curve behind `metric` over its steps."""
    curves = [run.summary["curve"] for run in runs if run.summary]
    if metric.curve is None or not curves:
        return [], []
    tracks = [dict(zip(c.get("step", ()), c.get(metric.curve, ()), strict=False)) for c in curves]
    return sorted(set(tracks[0]).intersection(*tracks[1:])), tracks
