"""What a careful reader of a comparison must know, one sentence each: found in the runs, not left to the reader."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bnlab.compare.arms import Arm, distinct, followers, short_names, text_of
from bnlab.compare.deciding import FEWEST_PAIRS, Test
from bnlab.compare.looked import Looked
from bnlab.compare.result import Row, Value
from bnlab.compare.statistics import (
    MOST_PAIRS,
    coverage_of_range,
    detectable_difference,
    pairs_needed,
    wilson_interval,
)
from bnlab.errors import brief, count_of
from bnlab.interval import Interval
from bnlab.metrics import MOST_INITIAL_SHARE, Metric, not_learned, share_left, uses_running
from bnlab.record.read import Run

MOST_NAMED = 6  # arms or values listed in a sentence
BESIDE = (
    "Times marked ‡ are of runs that ran while others did, which slows them unequally: they decide nothing; "
    "`bnlab bench` compares step times."
)
FEWEST_TO_PLAN = 5  # pairs, below which their spread is too uncertain to say how many are needed


@dataclass(frozen=True)
class Evidence:
    """One section's figures, and what went into them."""

    runs: Sequence[Run]
    environments: list[dict[str, object]]  # the distinct ones
    arms: Sequence[Arm]
    rows: Sequence[Row]
    changed: Sequence[str]
    columns: Sequence[Metric]
    num_duplicates: int
    unmeasured: Mapping[str, int]  # finished runs without a finite value, by metric
    without_target: Sequence[str]  # metrics asked for that need a target
    has_baseline: bool  # False: the baseline that was asked for is not among these arms
    chosen: Sequence[str] = ()  # keys at each arm's own best value
    is_matrix: bool = False  # no arm is compared with another
    images: int | None = None  # that the main metric is a share of
    looked: Looked = field(default_factory=Looked)


def notes_on(evidence: Evidence) -> list[str]:
    """Return all notes, the most important first."""
    if evidence.runs[0].is_bench:
        return [*_bench(evidence), *_states(evidence), *_hidden(evidence), *_pooled(evidence), *_missing(evidence),
                *_environments(evidence)]  # fmt: skip
    return [
        *filter(None, [evidence.looked.sentence()]),
        *_seeds(evidence),
        *_states(evidence),
        *_equal(evidence),
        *_rates(evidence),
        *_unlearned(evidence),
        *_hidden(evidence),
        *_pooled(evidence),
        *_initial(evidence),
        *_pairing(evidence),
        *_power(evidence),
        *_test_set(evidence),
        *_times(evidence),
        *_missing(evidence),
        *_environments(evidence),
    ]


def environments_of(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return the distinct environments."""
    by_text = {json.dumps(run.environment, sort_keys=True): run.environment for run in runs if run.environment}
    return list(by_text.values())


def _seeds(evidence: Evidence) -> Iterator[str]:
    main = evidence.columns[0].name
    single = [row for row in evidence.rows if row.n and row.metrics[main].n == 1]
    if single:
        what = "one finished run" if all(row.n == 1 for row in single) else "one seed with a finite figure"
        which = "Each arm has" if len(single) == len(evidence.rows) else f"{named([r.label for r in single])}: there is"
        yield f"{which} {what} (n=1): no interval and no p can be given, and seeds differ."


def _bench(evidence: Evidence) -> Iterator[str]:
    """What the ratios of a bench are to; its steps were taken in turn, so there are no seeds to count."""
    benches = [run.summary["bench"] for run in evidence.runs if run.summary]
    names = list(dict.fromkeys(str(bench.get("baseline")) for bench in benches))
    if any("ratio" in bench for bench in benches):  # which a profile has not
        yield (
            f"step ratio: an arm's step over that of {named(names)}, taken in turn in one process; "
            "its interval is over the rounds of the bench."
        )
    folders = list(dict.fromkeys(run.folder.parent for run in evidence.runs))
    if len(folders) > 1:
        yield (
            f"The arms come from {len(folders)} benches: each ratio is to the baseline in its own bench, "
            "and milliseconds of different benches cannot be compared closely."
        )
    yield f"More figures: {named([str(folder / 'bench.csv') for folder in folders])}."
    copies = [
        (low, high)
        for low, high in dict.fromkeys((bench.get("control_low"), bench.get("control_high")) for bench in benches)
        if isinstance(low, float) and isinstance(high, float)
    ]
    if copies:
        took = named([f"{low:.3f} to {high:.3f}" for low, high in copies])
        doubt = "" if all(low <= 1 <= high for low, high in copies) else ", not 1"
        finer = f"take no difference finer than {finest(copies)} for real"
        yield f"A second copy of the baseline took {took} of it{doubt}: {finer}."


def _unlearned(evidence: Evidence) -> Iterator[str]:
    """Say what the table means by runs that did not learn."""
    if any(row.num_unlearned for row in evidence.rows):
        meaning = dict.fromkeys(filter(None, (not_learned(run.summary or {}) for run in evidence.runs)))
        yield f"{'; '.join(meaning).capitalize()}."


def _states(evidence: Evidence) -> Iterator[str]:
    totals = states_of(evidence.rows)
    unfinished = [f"{count} {state}" for state, count in totals.items() if state != "done"]
    if unfinished:
        arms = [
            f"{row.label}: mean of {row.n} of {row.num_runs} runs; {', '.join(ended)}"
            for row in evidence.rows
            if (ended := [f"{count} {state}" for state, count in row.states.items() if state != "done"])
        ]
        yield (
            f"Runs not finished: {totals.total() - totals['done']} of {totals.total()} ({', '.join(unfinished)}); "
            f"means are over finished runs only (†), which flatters an arm that loses some. {named(arms, by='. ')}."
        )
    if evidence.num_duplicates:
        runs = count_of(evidence.num_duplicates, "run")
        better = "a better measured" if evidence.runs[0].is_bench else "a later or finished"
        yield f"{runs} left out: same configuration and seed as {better} one."


def states_of(rows: Sequence[Row]) -> Counter[str]:
    """Return how many runs of all rows ended how."""
    return sum((Counter(row.states) for row in rows), Counter[str]())


def _equal(evidence: Evidence) -> Iterator[str]:
    """Name arms of which every figure that no clock had a part in is the same, bit by bit."""
    arms: dict[frozenset[tuple[int, int]], list[str]] = {}
    for arm in evidence.arms:
        seen = [(run.seed, _traces(run)) for run in arm.runs if run.summary and run.summary["curve"]]
        if seen:
            arms.setdefault(frozenset(seen), []).append(arm.label)
    equal = [named(labels, by=" and ") for labels in arms.values() if len(labels) > 1]
    if equal:
        same = "Equal in every recorded figure of every seed, so that what tells them apart has no effect"
        yield f"{same}: {named(equal, by='; ')}."


def _traces(run: Run) -> int:
    summary = run.summary or {}
    curves = [(name, bytes(values)) for name, values in sorted(summary["curve"].items()) if name != "seconds"]
    meters = summary.get("meters")
    read = (
        [(name, about.get("curve")) for name, about in meters.items() if isinstance(about, dict)]
        if isinstance(meters, dict)
        else []
    )
    return hash((run.state, repr(read), *curves))


def _rates(evidence: Evidence) -> Iterator[str]:
    if "norm.name" not in evidence.changed or "optim.lr" in evidence.chosen or len(evidence.arms) < 2:
        return
    rates = distinct("optim.lr", evidence.runs)
    if len(rates) == 1:
        yield (
            f"All arms ran at optim.lr={text_of(rates[0])}; "
            "a learning rate of its own for each arm may change the order."
        )


def _hidden(evidence: Evidence) -> Iterator[str]:
    if any(arm.pooled for arm in evidence.arms):
        return
    keys = followers(evidence.runs, [*evidence.changed, *evidence.chosen])
    if keys:
        yield f"The arms differ in more than the table shows, always together with it: {_keys(keys)}."


def _pooled(evidence: Evidence) -> Iterator[str]:
    pooled: dict[str, list[Value]] = {}
    for arm in evidence.arms:
        for key in arm.pooled:
            pooled[key] = distinct(key, evidence.runs)
    if not pooled:
        return
    yield f"Runs that differ in {_keys(pooled)} are pooled; each seed counts once, with the mean over its runs."
    if any(arm.pooled != evidence.arms[0].pooled for arm in evidence.arms):
        yield "The arms are pooled over different values, so a difference may come from these."


def _initial(evidence: Evidence) -> Iterator[str]:
    left = {
        arm.label: max((share for run in arm.runs if run.summary and (share := share_left(run.summary))), default=0.0)
        for arm in evidence.arms
        if any(uses_running(run.config.get("eval.stats")) for run in arm.runs)
    }
    much = [f"{label} {brief(100 * share)} %" for label, share in left.items() if share > MOST_INITIAL_SHARE]
    if much:
        yield (
            "Evaluated with running statistics of which a part is still the initial mean 0 and variance 1: "
            f"{named(much)}."
        )


def _pairing(evidence: Evidence) -> Iterator[str]:
    if evidence.is_matrix:
        return
    if not evidence.has_baseline:
        yield "The baseline is none of these arms, so there are no differences."
        return
    main = evidence.columns[0].name
    seeds = {r.label: r.seeds or frozenset() for r in evidence.rows}
    without = [r for r in evidence.rows if not r.is_baseline and r.n and main not in r.vs_baseline]
    alone = [r.label for r in without if seeds[r.label].isdisjoint(seeds.get(r.against, ()))]
    if alone:
        yield f"{named(alone)}: no difference, since no baseline shares a seed and the other settings."
    if empty := [r.label for r in without if r.label not in alone]:
        yield f"{named(empty)}: no difference, since no seed of both has a result."
    partly = [r.label for r in evidence.rows if main in r.vs_baseline and r.vs_baseline[main].n < r.metrics[main].n]
    if partly:
        yield f"{named(partly)}: the difference is over the seeds that the baseline has too."
    differences = {row.label: row.vs_baseline[main] for row in evidence.rows if main in row.vs_baseline}
    untested = {label: d for label, d in differences.items() if d.n > 1 and d.p is None}
    fewest = FEWEST_PAIRS[evidence.looked.test or "t"]
    few = [label for label, d in untested.items() if d.n < fewest]
    if few:
        yield f"{named(few)}: a difference of fewer than {fewest} pairs of seeds decides nothing, so it has no p."
    constant = [label for label, d in untested.items() if d.n >= fewest and d.sd == 0]
    if constant:
        yield f"{named(constant)}: the differences are equal in every seed, too few to give an interval or p."
    survived = [label for label, d in untested.items() if d.n >= fewest and d.sd and d.num_lost]
    if survived:
        yield f"{named(survived)}: the side that looks better lost runs, so the difference (†) has no p."


def _power(evidence: Evidence) -> Iterator[str]:
    main = evidence.columns[0]
    seen = {row.label: row.vs_baseline[main.name] for row in evidence.rows if main.name in row.vs_baseline}
    spread = [(label, difference) for label, difference in seen.items() if difference.sd]
    level = evidence.looked.level
    shown = can_show(list(seen.values()), main, level)
    if shown is None:
        return
    yield (
        f"{shown[0]} paired seeds can show a true difference in {main.title} of {shown[1]}"
        f" (80% power, {100 * level:.2g}% level, before correction)."
    )
    plans = []
    for label, difference in spread:
        if difference.n >= FEWEST_TO_PLAN and (difference.p is None or difference.p > 0.05):
            needed = seeds_needed(difference, evidence.looked.next_level, test=evidence.looked.test or "t")
            text = f"more than {MOST_PAIRS:,}" if needed is None else f"about {needed:,}"
            plans.append(f"{label} {text}")
    if plans:
        yield f"Seeds an arm needs to show the difference now seen at a further look, if it is real: {named(plans)}."


def seeds_needed(difference: Interval, level: float, margin: float = 0.0, test: Test = "t") -> int | None:
    """Return how many seeds decide a difference that stays as it is: by how much it exceeds 0, or is within `margin`.

    Signs of a mean need about as many as t, and never fewer than FEWEST_PAIRS. None where so few pairs
    were seen that it cannot be said, or none of MOST_PAIRS do.
    """
    size = abs(difference.value)
    if difference.n < FEWEST_TO_PLAN or not difference.sd:
        return None
    needed = pairs_needed(size if size > margin else margin - size, difference.sd, level)
    return needed and max(needed, difference.n + 1, FEWEST_PAIRS[test])


def can_show(differences: Sequence[Interval], metric: Metric, level: float) -> tuple[str, str] | None:
    """Return how many pairs there are, and the true differences that they can show; None where no spread was seen."""
    spread = [(d.n, d.sd) for d in differences if d.sd]
    sizes = sorted(size * metric.scale for n, sd in spread if (size := detectable_difference(sd, n, level)))
    if not sizes:
        return None
    counts, ends = sorted({n for n, _ in spread}), dict.fromkeys(brief(size) for size in (sizes[0], sizes[-1]))
    few = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return few, f"{' to '.join(ends)} {unit_of(metric)}".rstrip()


def unit_of(metric: Metric) -> str:
    """Return the unit of a difference: that of two percentages is in points."""
    return "points" if metric.unit == "%" else metric.unit


def _test_set(evidence: Evidence) -> Iterator[str]:
    """Say how well so few images tell an accuracy, where the seeds seem to tell it better."""
    main, images = evidence.columns[0], evidence.images
    if images is None:
        return
    halves = [
        (high - low) / 2
        for row in evidence.rows
        if (e := row.metrics[main.name]).n > 1 and 0 <= e.value <= 1
        for low, high in [wilson_interval(e.value, images)]
        if high - low > 2 * e.half
    ]
    if halves:
        yield (
            f"Intervals and stars are over seeds on the same {images:,} {main.split} images; what other images would "
            f"give is known to ± {100 * max(halves):.1g} points only."
        )


def _times(evidence: Evidence) -> Iterator[str]:
    waits = [metric for metric in evidence.columns if metric.kind == "time to target"]
    counts = {row.metrics[metric.name].n for metric in waits for row in evidence.rows}
    few = min((n for n in counts if 2 <= n < 6), default=None)
    if few is not None:
        yield (
            f"Times to the target are medians; below 6 runs their interval is the range, which covers the median "
            f"in {coverage_of_range(few):.0%} of cases at n={few} instead of 95%."
        )
    if any(row.metrics[metric.name].since is not None for metric in waits for row in evidence.rows):
        yield "Times to the target are known to the grid of evaluations: (50–100] is after 50 and at 100 at the latest."
    cut = [m for m in waits if any(m.name in r.vs_baseline for r in evidence.rows)]
    if cut and any(row.metrics[m.name].num_missed for m in cut for row in evidence.rows):
        yield (
            "Differences in time to the target are of times cut where the first run ended without arriving "
            "(restricted mean): what a run would still have needed after that is not seen."
        )
    timed = [metric.name for metric in evidence.columns if metric.is_timed]
    if any(row.metrics[name].is_beside for name in timed for row in evidence.rows):
        yield BESIDE
    elif timed and len(evidence.rows) > 1:
        yield (
            "Step times of separate runs differ by more than strategies may; "
            "compare them within one machine and run only."
        )


def _missing(evidence: Evidence) -> Iterator[str]:
    if evidence.without_target:
        yield f"{named(evidence.without_target)}: this data has no usual target; give one with --target."
    for name, count in evidence.unmeasured.items():
        yield f"{name}: {count_of(count, 'finished run')} without a finite value, left out of its mean."


def _environments(evidence: Evidence) -> Iterator[str]:
    """Say where runs of different environments are compared: mixed, or one arm all here and another all there."""
    reference = next((row.label for row in evidence.rows if row.is_baseline), evidence.arms[0].label)
    mixed: list[str] = []
    apart: dict[str, list[str]] = {}  # pairs of arms -> in what their environments differ
    for key in dict.fromkeys(key for environment in evidence.environments for key in environment if key != "data"):
        values = list(dict.fromkeys(str(environment.get(key)) for environment in evidence.environments))
        if len(values) < 2:
            continue
        seen = {
            arm.label: {str(run.environment.get(key)) for run in arm.runs if run.environment} for arm in evidence.arms
        }
        here = seen[reference]
        others = [label for label, there in seen.items() if here and there and not here & there]
        if others:
            there = {value for label in others for value in seen[label]}
            pair = f"{named(others)} and {reference}"
            apart.setdefault(pair, []).append(f"{key} {named(sorted(there))} against {named(sorted(here))}")
        else:
            mixed.append(f"{key} {named(values)}")
    for pair, keys in apart.items():
        yield (
            f"No run of {pair} shares an environment, so a difference between these arms may be one between "
            f"environments: {'; '.join(keys)}."
        )
    if mixed:
        yield f"The runs come from different environments: {'; '.join(mixed)}."


def _keys(keys: Mapping[str, Sequence[Value]]) -> str:
    names = short_names(list(keys))
    return ", ".join(f"{names[key]} ({named([text_of(value) for value in values])})" for key, values in keys.items())


def finest(ratios: Sequence[tuple[float | None, float | None]]) -> str:
    """Return how far from 1 the intervals of ratios of equal things reach, in percent: no finer difference is one."""
    points = 100 * max((abs(bound - 1) for ratio in ratios for bound in ratio if bound is not None), default=math.inf)
    return f"{brief(points)} %"


def named(names: Sequence[str], by: str = ", ") -> str:
    """Return the names as a list, at most MOST_NAMED of them."""
    rest = len(names) - MOST_NAMED
    return by.join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
