"""What stands left of a sentence's comparison, from runs: one number a seed, or a count, or the interval of a bench.

The interval of a bench is widened by that of the second copy of its baseline, since a clock that tells two equal things
apart does not know others better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from bnlab.claims.cells import DEPTH, arm_of, by_level, full_key
from bnlab.claims.evidence import Count, Evidence, Known, Sample, Timed, Undecidable
from bnlab.claims.ladder import bracket
from bnlab.claims.language import (
    Condition,
    Difference,
    Exact,
    Expression,
    Largest,
    Quantity,
    Rate,
    Ratio,
    Slope,
    leaves,
    quantities,
)
from bnlab.compare.arms import OVER, Arm, text_of, without_duplicates
from bnlab.compare.best import choose
from bnlab.compare.comparison import Observed, observe
from bnlab.compare.slopes import NoSlope, slopes
from bnlab.compare.statistics import restrict
from bnlab.data.dataset import target_of
from bnlab.errors import ConfigError, count_of
from bnlab.metrics import Censored, find_metric
from bnlab.record.read import UNSTARTED, Run, refusals

MOST_LOST = 0.2  # of an arm's runs, above which the others are no fair sample of them


def evidence_of(
    expression: Expression, runs: Sequence[Run], best_of: Sequence[str] = (), *, at_edge: bool = False
) -> Evidence:
    """Return what finished runs say of the left side of a sentence; with `best_of`, each cell at its best setting.

    `at_edge` takes one at the edge of those tried. Errors: ConfigError for a cell that is no arm; Undecidable where the
    runs give no figure.
    """
    runs = without_duplicates([run for run in runs if not run.is_bench])[0] + [run for run in runs if run.is_bench]
    reader = _Reader(runs, best_of, at_edge)
    if isinstance(expression, Rate):
        return reader.count(expression.condition)
    if isinstance(expression, Exact):
        by_seed = reader.by_seed(expression.of)
        asked = list(quantities(expression))
        is_bench = any(reader.arm(quantity)[0].is_bench for quantity in asked)
        over = "" if any(each.metric == "check_error" for each in asked) else "block" if is_bench else "seed"
        return Known(max(map(abs, by_seed.values())), len(by_seed), over)
    free = dict.fromkeys(free_keys(expression))
    of_bench = {q.metric: reader.arm(q, *free)[0].is_bench for q in quantities(expression)}
    if "step_ratio" in of_bench:
        return reader.timed(expression)
    if len(set(of_bench.values())) > 1:
        raise ConfigError(f"{expression}: figures by seed and by block of a bench cannot be paired; use step_ratio")
    sample = reader.sample(expression)
    return replace(sample, over="block") if any(of_bench.values()) else sample


def unlearned(expression: Expression, runs: Sequence[Run], best_of: Sequence[str] = ()) -> Iterator[str]:
    """Yield each cell whose figure an expression takes of trainings that learned nothing, with their number."""
    reader, learned = _Reader(runs, best_of, at_edge=True), Quantity("learned")
    for quantity in leaves(expression):
        if isinstance(quantity, Quantity):
            try:
                values = [figure_of(learned, run) for run in reader.arm(quantity) if run.state == "done"]
            except Undecidable:
                continue
            if lost := values.count(0.0):
                yield f"not learned: {' '.join(quantity.cell) or 'all'} ({lost} of {count_of(len(values), 'run')})"


def free_keys(expression: Expression) -> list[str]:
    """Return the keys that a slope or a ladder goes over."""
    match expression:
        case Largest(key, _):
            return [key]
        case Slope(_, over):
            return [] if over == DEPTH else [over]
        case Difference(a, b) | Ratio(a, b, _):
            return [*free_keys(a), *free_keys(b)]
    return []


class _Reader:
    """The figures of one expression, each found once: its value, scale and slack ask for the same ones."""

    def __init__(self, runs: Sequence[Run], best_of: Sequence[str], at_edge: bool) -> None:
        self.best_of, self.at_edge = best_of, at_edge
        self.limits: list[float] | None = None  # of times to a target: when runs ended that did not arrive
        self._arm = cache(lambda quantity, *free: arm_of(quantity, runs, [*free, *best_of]))
        self.by_seed, self._ladder = cache(self._find_by_seed), cache(self._climb)

    def arm(self, quantity: Quantity, *free: str) -> list[Run]:
        """Return the runs of a cell at its best setting."""
        return self._chosen(quantity, self._arm(quantity, *free))

    def _levels(self, of: Quantity, word: str) -> dict[float, list[Run]]:
        return by_level(of, self._arm(of, word), word)

    def _chosen(self, quantity: Quantity, runs: list[Run]) -> list[Run]:
        keys = [full_key(word, runs) for word in self.best_of]
        if not keys or runs[0].is_bench:
            return runs
        arm = Arm({}, runs=runs)
        (choice,) = choose([arm], keys)
        if choice.chosen is None:
            raise Undecidable("missing", f"{quantity}: no run is finished at any {', '.join(self.best_of)}")
        for key, word in () if self.at_edge else zip(keys, self.best_of, strict=True):
            tried = [v for v in choice.values_of(key) if isinstance(v, (int, float)) and not isinstance(v, bool)]
            if len(tried) > 1 and (best := choice.chosen.values.get(key)) in (min(tried), max(tried)):
                raise Undecidable(
                    "edge", f"{quantity}: its best {word}, {text_of(best)}, is at the edge of those tried: try more"
                )
        return arm.runs

    def observed(self, quantity: Quantity, runs: Sequence[Run] | None = None) -> Observed:
        """Return a metric by seed. Errors: Undecidable without one, or where too many runs lack it."""
        runs = self.arm(quantity) if runs is None else runs
        metric = find_metric(quantity.metric)
        target = target_of(runs[0].config.get("data.name"))
        if metric.kind == "time to target" and target is None:
            raise ConfigError(f"{quantity}: {runs[0].config.get('data.name')} has no usual target")
        observed = observe(_alone(quantity, [run for run in runs if run.state in OVER]), metric, target)
        over = [run for run in runs if run.state not in (*UNSTARTED, "running")]
        lost = len({run.seed for run in over} - observed.values.keys())
        if not observed.values:
            raise Undecidable(
                "missing", f"{quantity}: {'; '.join(refusals(over)) or 'no finished run has this figure'}"
            )
        if lost > MOST_LOST * len(over):
            raise Undecidable("unpaired", f"{quantity}: {lost} of {len(over)} runs ended without this figure")
        return observed

    def _find_by_seed(self, expression: Expression) -> dict[int, float]:
        """Return one number a seed that all parts of the expression have. Errors: Undecidable."""
        match expression:
            case Quantity():
                return self._numbers(expression, self.arm(expression))
            case Difference(of, minus):
                a, b = self.by_seed(of), self.by_seed(minus)
                return {seed: a[seed] - b[seed] for seed in _shared(a, b)}
            case Ratio(of, over, inverse):
                a, b = self.by_seed(of), self.by_seed(over)
                if not inverse and any(b[seed] == 0 for seed in _shared(a, b)):
                    raise Undecidable("missing", f"{over}: is 0 in a run, so there is no ratio to it")
                return {seed: a[seed] * b[seed] if inverse else a[seed] / b[seed] for seed in _shared(a, b)}
            case Slope():
                return self._slopes(expression)
            case Largest():
                return {seed: math.exp(center) for seed, (center, _) in self._ladder(expression).items()}
        raise ConfigError(f"{expression}: stands alone, left of the comparison")

    def _numbers(self, quantity: Quantity, runs: list[Run]) -> dict[int, float]:
        """Return a metric of one arm by seed, or of a bench by block: these are what its intervals are estimated from.

        Blocks of arms that were timed in turn are pairs as seeds are, and of others they are independent draws.
        """
        if not runs[0].is_bench:
            return self._values(quantity, self.observed(quantity, runs))
        bench: Mapping[str, Any] = (max(runs, key=lambda run: run.order).summary or {}).get("bench", {})
        by_block = bench.get("by_block")
        values = by_block.get(quantity.metric) if isinstance(by_block, Mapping) else None
        if not isinstance(values, list) or not all(isinstance(value, (int, float)) for value in values):
            raise Undecidable("missing", f"{quantity}: the bench keeps no blocks of it")
        scale = find_metric(quantity.metric).scale
        return {block: abs(v * scale) if quantity.absolute else v * scale for block, v in enumerate(values)}

    def _values(self, quantity: Quantity, observed: Observed) -> dict[int, float]:
        """Return a metric in its unit, times that were not reached cut where the first run ended without arriving."""
        seeds, values = list(observed.values), list(observed.values.values())
        if not all(map(math.isfinite, values)) or self.limits:
            values = restrict(values, self.limits if self.limits is not None else list(observed.limits.values()))
        scale = find_metric(quantity.metric).scale
        return {
            seed: abs(value * scale) if quantity.absolute else value * scale
            for seed, value in zip(seeds, values, strict=True)
        }

    def sample(self, expression: Expression) -> Sample:
        """Return one number a seed, of a ratio its logarithm."""
        self._find_limits(expression)
        by_seed = self.by_seed(expression)
        if not by_seed:
            raise Undecidable("missing", f"{expression}: its arms have no seed in common")
        values = list(by_seed.values())
        if not all(map(math.isfinite, values)):
            raise Undecidable("missing", f"{expression}: is not finite in a run")
        if not isinstance(expression, (Ratio, Largest)):
            sizes = self._sizes(expression)
            slack, step = self._slack(expression, logs=False), self._step(expression)
            return Sample(values, scale=max(map(abs, sizes), default=0.0), slack=slack, step=step)
        if min(values) <= 0:
            raise Undecidable("missing", f"{expression}: is not positive in every run, so it has no logarithm")
        return Sample([math.log(v) for v in values], logs=True, slack=self._slack(expression, logs=True))

    def _sizes(self, expression: Expression) -> list[float]:
        """Return the figures that an expression is a difference of."""
        if isinstance(expression, Difference):
            return [*self._sizes(expression.of), *self._sizes(expression.minus)]
        return list(self.by_seed(expression).values())

    def _step(self, expression: Expression) -> float:
        """Return what the figures of an expression are counted in: of shares of images, one of them."""
        match expression:
            case Difference(of, minus):
                return max(self._step(of), self._step(minus))
            case Quantity(metric) if find_metric(metric).split is not None:
                images = self.observed(expression).images
                return find_metric(metric).scale / images if images else 0.0
        return 0.0

    def _slack(self, expression: Expression, logs: bool) -> tuple[float, float]:
        """Return by how much an expression may be lower and higher, since its figures are known to a grid.

        A time lies between two evaluations, the largest level of a ladder between two of its levels.
        """
        match expression:
            case Difference(a, b) if not logs:
                (low, high), (low_b, high_b) = self._slack(a, logs), self._slack(b, logs)
                return low + high_b, high + low_b
            case Ratio(a, b, inverse) if logs:
                (low, high), (low_b, high_b) = self._slack(a, logs), self._slack(b, logs)
                return (low + low_b, high + high_b) if inverse else (low + high_b, high + low_b)
            case Largest() if logs:
                half = max((half for _, half in self._ladder(expression).values()), default=0.0)
                return half, half
            case Quantity(metric) if find_metric(metric).kind == "time to target":
                return self._since_the_evaluation_before(expression, logs), 0.0
        return 0.0, 0.0

    def _since_the_evaluation_before(self, quantity: Quantity, logs: bool) -> float:
        observed = self.observed(quantity)
        times = list(self._values(quantity, observed).values())
        before = [min(observed.before[seed], time) for seed, time in zip(observed.values, times, strict=True)]
        if not logs:
            return statistics.fmean(time - early for time, early in zip(times, before, strict=True))
        if min(before) <= 0:
            return math.inf  # it may have been there at once
        return statistics.fmean(math.log(time / early) for time, early in zip(times, before, strict=True))

    def _find_limits(self, expression: Expression) -> None:
        """Find when runs ended that did not reach their target, which cuts the times of all. Errors: Undecidable."""
        measured = [leaf for leaf in leaves(expression) if isinstance(leaf, Quantity)]
        times = [quantity for quantity in measured if find_metric(quantity.metric).kind == "time to target"]
        if not times:
            return
        all_observed = [self.observed(quantity) for quantity in times]
        arrived = [math.isfinite(value) for observed in all_observed for value in observed.values.values()]
        if not any(arrived):
            raise Undecidable("censored", f"{expression}: no run reached the target")
        limits = [limit for observed in all_observed for limit in observed.limits.values()]
        if not limits and not all(arrived):  # only runs that diverged did not arrive
            limits = [end for observed in all_observed for end in observed.ends.values()]
        self.limits = limits

    def count(self, condition: Condition) -> Count:
        """Return in how many runs a condition holds; a run that failed says nothing."""
        runs = _alone(condition.of, self.arm(condition.of))
        values = [value for run in runs if (value := figure_of(condition.of, run)) is not None]
        if not values:
            raise Undecidable("missing", f"{condition.of}: no run is over")
        return Count(sum(map(condition.holds, values)), len(values))

    def timed(self, expression: Expression) -> Timed:
        """Return ratios of a bench, with those of seeds beside them."""
        ratios, rest = [], []
        rounds = 0
        for sign, part in _factors(expression):
            if isinstance(part, Quantity) and (runs := self.arm(part))[0].is_bench:
                value, low, high, n = _bench_ratio(part, runs)
                ratios.append((value, low, high) if sign > 0 else (-value, -high, -low))
                rounds = max(rounds, n)
            else:
                rest.append((sign, part))
        if not rest:
            return Timed(ratios, rounds)
        self._find_limits(expression)
        logs: dict[int, float] | None = None
        for sign, part in rest:
            by_seed = self.by_seed(part)
            if min(by_seed.values(), default=0.0) <= 0:
                raise Undecidable("missing", f"{part}: is not positive in every run, so it has no logarithm")
            logs = logs if logs is not None else dict.fromkeys(by_seed, 0.0)
            logs = {seed: logs[seed] + sign * math.log(by_seed[seed]) for seed in _shared(logs, by_seed)}
        low, high = 0.0, 0.0
        for sign, part in rest:
            of_part = self._slack(part, logs=True)
            low, high = low + of_part[sign < 0], high + of_part[sign > 0]
        return Timed(ratios, rounds, Sample(list((logs or {}).values()), logs=True, slack=(low, high)))

    def _slopes(self, slope: Slope) -> dict[int, float]:
        points: dict[int, list[tuple[float, float]]] = {}
        if slope.over == DEPTH:
            runs = self.arm(slope.of)
            self.observed(slope.of, runs)  # raises where too many are lost
            for run in runs:
                if run.state == "done":
                    points[run.seed] = list(_by_depth(slope.of, run))
        else:
            for level, runs in self._levels(slope.of, slope.over).items():
                values = self._numbers(slope.of, self._chosen(slope.of, runs))
                for seed, value in values.items():
                    points.setdefault(seed, []).append((level, value))
        try:
            return slopes(points, log_levels=slope.log_over, log_values=slope.log_of)
        except NoSlope as error:
            raise Undecidable("missing", f"{slope}: {error}") from error

    def _climb(self, largest: Largest) -> dict[int, tuple[float, float]]:
        """Return for each seed the middle between the last level that passed and the next, and half that step."""
        passed: dict[int, dict[float, bool]] = {}
        unfinished = set()
        for level, runs in self._levels(largest.condition.of, largest.key).items():
            for run in _alone(largest.condition.of, runs):
                if (value := figure_of(largest.condition.of, run)) is not None:
                    passed.setdefault(run.seed, {})[level] = largest.condition.holds(value)
                elif run.state != "not needed":
                    unfinished.add(run.seed)
        found = {}
        for seed, levels in passed.items():
            at = bracket(levels)
            if not at.is_closed:
                if seed in unfinished:
                    continue
                where = "the smallest level fails" if at.low == 0 else "the largest level passes"
                raise Undecidable("edge", f"{largest}: {where} with seed {seed}: try more levels")
            low, high = math.log(at.low), math.log(at.high)
            found[seed] = ((low + high) / 2, (high - low) / 2)
        return found


def _alone(quantity: Quantity, runs: list[Run]) -> list[Run]:
    """Return the runs. Errors: Undecidable for what a clock read of runs that ran while others did."""
    if find_metric(quantity.metric).is_timed and any(run.is_beside for run in runs):
        raise Undecidable("clock", f"{quantity}: its runs ran while others did; time the arms with `bench:`")
    return runs


def figure_of(quantity: Quantity, run: Run) -> float | None:
    """Return a metric of one run in its unit, for a condition; None where the run is not over or lacks it."""
    if run.state not in (*OVER, "refused"):
        return None
    metric = find_metric(quantity.metric)
    summary = run.summary or {"state": run.state, "curve": {}}
    value = metric.derive(summary, target_of(run.config.get("data.name")))
    value = math.inf if isinstance(value, Censored) else value
    if value is None or math.isnan(value):
        return None
    return abs(value * metric.scale) if quantity.absolute else value * metric.scale


def _bench_ratio(quantity: Quantity, runs: Sequence[Run]) -> tuple[float, float, float, int]:
    """Return the logarithm of the latest bench's ratio, its interval widened by the control's, and the rounds."""
    if quantity.metric != "step_ratio":
        raise ConfigError(f"{quantity}: a bench has no interval of it; compare step_ratio")
    bench: Mapping[str, Any] = (max(runs, key=lambda run: run.order).summary or {}).get("bench", {})
    names = ("ratio", "ratio_low", "ratio_high", "control_low", "control_high")
    numbers = [bench.get(name) for name in names]
    ratio, low, high, *control = [n if isinstance(n, (int, float)) and n > 0 else math.nan for n in numbers]
    if bench.get("arm") == bench.get("baseline"):
        ratio, low, high = 1.0, 1.0, 1.0
    if any(map(math.isnan, (ratio, low, high, *control))):
        raise Undecidable("missing", f"{quantity}: the bench has no interval of it")
    rounds = bench.get("rounds")
    widened = math.log(low * min(1.0, control[0])), math.log(high * max(1.0, control[1]))
    return math.log(ratio), *widened, rounds if isinstance(rounds, int) else 0


def _by_depth(quantity: Quantity, run: Run) -> Iterator[tuple[float, float]]:
    layers = (run.summary or {}).get("layers")
    for layer in layers.values() if isinstance(layers, Mapping) else ():
        depth, value = (layer.get(DEPTH), layer.get(quantity.metric)) if isinstance(layer, Mapping) else (None, None)
        if isinstance(depth, (int, float)) and isinstance(value, (int, float)):
            yield float(depth), abs(value) if quantity.absolute else float(value)


def _factors(expression: Expression, sign: int = 1) -> Iterator[tuple[int, Expression]]:
    """Yield the factors of a ratio of ratios with their powers. Errors: ConfigError for a difference of benches."""
    match expression:
        case Ratio(of, over, inverse):
            yield from _factors(of, sign)
            yield from _factors(over, sign if inverse else -sign)
        case Quantity() | Slope() | Largest():
            yield sign, expression
        case _:
            raise ConfigError(f"{expression}: figures of a bench are compared as ratios, with / in place of -")


def _shared(a: Mapping[int, float], b: Mapping[int, float]) -> list[int]:
    return sorted(a.keys() & b.keys())
