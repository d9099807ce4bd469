"""What stands left of a sentence's comparison, from runs: one number a seed, or a count, or the interval of a bench.

Each gives an interval at any level. Of one number a seed it is Student's t over seeds, of a ratio on logarithms; of a
rate Clopper and Pearson's; of a bench the recorded one, widened by that of the second copy of its baseline, since a
clock that tells two equal things apart does not know others better. An exact value is its own interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    quantities,
)
from bnlab.compare.arms import NOT_COMPARED, Arm, arms_of, distinct, find_key, text_of, where_of, without_duplicates
from bnlab.compare.best import choose
from bnlab.compare.comparison import Observed, observe
from bnlab.compare.deciding import FEWEST_PAIRS, Paired, Rule
from bnlab.compare.statistics import LEVEL, restrict
from bnlab.data.dataset import target_of
from bnlab.errors import ConfigError
from bnlab.interval import Interval
from bnlab.metrics import Censored, find_metric
from bnlab.record.read import Run

Reason = Literal["wide", "few", "guard", "edge", "censored", "unpaired", "clock", "mixed", "missing"]
DEPTH = "depth"  # what a slope may go over beside the keys of a configuration
FEWEST_LEVELS = 3  # of a slope
MOST_LOST = 0.2  # of an arm's runs, above which the others are no fair sample of them
BENCH_ONLY = ("step_ratio",)
OF_A_BENCH = ("step_ratio", "step_ms", "images_per_second")


class Undecidable(Exception):
    """Why runs give no figure, in one word and in a sentence."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Sample:
    """One number a seed."""

    values: Sequence[float]  # of a ratio their logarithms
    logs: bool = False
    scale: float = 0.0  # of the figures that they are differences of
    slack: float = 0.0  # by how much the mean may in truth be off either way, where a figure is known to a grid

    @property
    def n(self) -> int:
        return len(self.values)

    def paired(self, alpha: float, looks: tuple[int, ...]) -> Paired:
        return Paired(self.values, Rule(looks, alpha), self.scale, (self.slack, self.slack))

    def interval(self, alpha: float, looks: tuple[int, ...]) -> Interval:
        """Return the mean with its interval. Errors: Undecidable with too few seeds, or without any spread."""
        if self.n < FEWEST_PAIRS["t"]:
            raise Undecidable("few", f"{self.n} seeds; {FEWEST_PAIRS['t']} or more can decide")
        sample = self.paired(alpha, looks)
        found = sample.interval()
        if found.low is None or found.high is None or (sample.sd == 0.0 and self.n < FEWEST_PAIRS["signs"]):
            raise Undecidable("few", f"all {self.n} seeds agree to the digit, and so few say nothing of a spread")
        if not self.logs:
            return found
        return Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high), self.n, sd=found.sd)


@dataclass(frozen=True)
class Count:
    """In how many of `n` runs a condition held."""

    number: int
    n: int

    def interval(self, alpha: float, looks: tuple[int, ...]) -> Interval:
        """Return the share with Clopper and Pearson's interval, its level shared among the looks."""
        from scipy.special import betaincinv

        k, n, tail = self.number, self.n, alpha / max(len(looks), 1) / 2
        low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
        high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
        return Interval(k / n, low, high, n)


@dataclass(frozen=True)
class Known:
    """A value without an interval."""

    value: float
    n: int

    def interval(self, alpha: float, looks: tuple[int, ...]) -> Interval:
        return Interval(self.value, self.value, self.value, self.n)


@dataclass(frozen=True)
class Timed:
    """A product of ratios of a bench, as logarithms, each with a 95% interval; and of seeds, independent of these."""

    ratios: Sequence[tuple[float, float, float]]  # value, low, high
    n: int  # rounds
    seeds: Sample | None = None

    def interval(self, alpha: float, looks: tuple[int, ...]) -> Interval:
        """Return the product with its interval: squares of half-widths on the logarithm add."""
        normal = statistics.NormalDist()
        wider = normal.inv_cdf(1 - alpha / 2) / normal.inv_cdf(1 - (1 - LEVEL) / 2)
        centers = [value for value, _, _ in self.ratios]
        below = [wider * (value - low) for value, low, _ in self.ratios]
        above = [wider * (high - value) for value, _, high in self.ratios]
        n = self.n
        if self.seeds is not None:
            found = self.seeds.interval(alpha, looks)
            n = found.n
            centers.append(math.log(found.value))
            below.append(math.log(found.value / (found.low or found.value)))
            above.append(math.log((found.high or found.value) / found.value))
        center = math.fsum(centers)
        return Interval(
            math.exp(center), math.exp(center - math.hypot(*below)), math.exp(center + math.hypot(*above)), n
        )


Evidence = Sample | Count | Known | Timed


# ---------------------------------------------------------------- from a sentence's cells to runs


def arm_of(quantity: Quantity, runs: Sequence[Run], free: Sequence[str] = ()) -> list[Run]:
    """Return the runs of the only arm that a quantity's cell leaves; the keys `free` make no arm.

    Errors: ConfigError where it leaves none or several, with what there is.
    """
    is_bench = quantity.metric in OF_A_BENCH and any(run.is_bench for run in runs)
    if quantity.metric in BENCH_ONLY and not is_bench:
        raise ConfigError(f"{quantity}: is of a bench, and there is none here\nmeasure one with `bnlab bench`")
    kept = [run for run in runs if run.is_bench == is_bench]
    if not kept:
        raise ConfigError(f"{quantity}: no training run is here, only benches")
    try:
        kept = where_of(quantity.cell, kept)
        keys = {find_key(word, {key: None for run in kept for key in run.config}) for word in free}
    except ConfigError as error:
        raise ConfigError(f"{quantity}: {str(error).removeprefix('--where ')}") from error
    apart = NOT_COMPARED | keys
    arms = {tuple(sorted((k, text_of(v)) for k, v in run.config.items() if k not in apart)) for run in kept}
    if len(arms) > 1:
        labels = [arm.label for arm in arms_of(kept, apart=sorted(keys))[0]]
        raise ConfigError(
            f"{quantity}: means {len(arms)} arms, and must mean one\n"
            f"add what tells them apart; there are: {', '.join(labels[:12])}{', …' if len(labels) > 12 else ''}"
        )
    by_data: dict[tuple[Any, ...], set[object]] = {}
    for run in kept:
        level = tuple(run.config.get(key) for key in sorted(keys))
        by_data.setdefault(level, set()).add(run.environment.get("data_fingerprint", ""))
    if any(len(marks - {""}) > 1 for marks in by_data.values()):
        raise ConfigError(f"{quantity}: its runs are on different data of the same name\nname the folder of one sweep")
    return kept


def full_key(word: str, runs: Sequence[Run]) -> str:
    """Return the key of a configuration that `word` means. Errors: ConfigError."""
    return find_key(word, {key: None for run in runs for key in run.config})


def check_cells(expression: Expression, runs: Sequence[Run], best_of: Sequence[str] = ()) -> None:
    """Find the arm of every quantity and the levels of every key, of runs that need not be over.

    Errors: ConfigError.
    """
    match expression:
        case Difference(a, b) | Ratio(a, b, _):
            check_cells(a, runs, best_of)
            check_cells(b, runs, best_of)
        case Exact(of):
            check_cells(of, runs, best_of)
        case Rate(condition):
            arm_of(condition.of, runs, best_of)
        case Largest(key, condition):
            _levels(condition.of, runs, key, best_of)
        case Slope(of, over):
            if over == DEPTH:
                arm_of(of, runs, best_of)
            else:
                _levels(of, runs, over, best_of)
        case Quantity():
            arm_of(expression, runs, best_of)


def _levels(of: Quantity, runs: Sequence[Run], word: str, best_of: Sequence[str]) -> dict[float, list[Run]]:
    """Return the runs of an arm at each level of a key, the smallest first. Errors: ConfigError."""
    kept = arm_of(of, runs, [word, *best_of])
    key = full_key(word, kept)
    levels = distinct(key, kept)
    numbers = [v for v in levels if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < FEWEST_LEVELS or len(numbers) < len(levels):
        there = ", ".join(map(text_of, levels)) or "not set"
        raise ConfigError(f"{of} over {word}: needs {FEWEST_LEVELS} numbers or more; {key} is {there}")
    return {float(level): [run for run in kept if run.config.get(key) == level] for level in numbers}


# ---------------------------------------------------------------- from runs to figures


def evidence_of(expression: Expression, runs: Sequence[Run], best_of: Sequence[str] = ()) -> Evidence:
    """Return what finished runs say of the left side of a sentence; with `best_of`, each cell at its best setting.

    Errors: ConfigError for a cell that is no arm; Undecidable where the runs give no figure.
    """
    runs = without_duplicates([run for run in runs if not run.is_bench])[0] + [run for run in runs if run.is_bench]
    reader = _Reader(runs, best_of)
    if isinstance(expression, Rate):
        return reader.count(expression.condition)
    if isinstance(expression, Exact):
        by_seed = reader.by_seed(expression.of)
        return Known(max(map(abs, by_seed.values())), len(by_seed))
    if any(run.is_bench for quantity in quantities(expression) for run in reader.arm(quantity, _free(expression))):
        return reader.timed(expression)
    return reader.sample(expression)


def _free(expression: Expression) -> list[str]:
    """Return the keys that a slope or a ladder goes over."""
    match expression:
        case Largest(key, _):
            return [key]
        case Slope(_, over):
            return [] if over == DEPTH else [over]
        case Difference(a, b) | Ratio(a, b, _):
            return [*_free(a), *_free(b)]
    return []


class _Reader:
    """The figures of one expression."""

    def __init__(self, runs: Sequence[Run], best_of: Sequence[str]) -> None:
        self.runs, self.best_of = runs, best_of
        self.limits: list[float] | None = None  # of times to a target: when runs ended that did not arrive

    def arm(self, quantity: Quantity, free: Sequence[str] = ()) -> list[Run]:
        """Return the runs of a cell at its best setting."""
        return self._chosen(quantity, arm_of(quantity, self.runs, [*free, *self.best_of]))

    def _chosen(self, quantity: Quantity, runs: list[Run]) -> list[Run]:
        keys = [full_key(word, runs) for word in self.best_of]
        if not keys or runs[0].is_bench:
            return runs
        arm = Arm({}, runs=runs)
        (choice,) = choose([arm], keys)
        if choice.chosen is None:
            raise Undecidable("missing", f"{quantity}: no run is finished at any {', '.join(self.best_of)}")
        for key, word in zip(keys, self.best_of, strict=True):
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
        observed = observe([run for run in runs if run.state == "done"], metric, target)
        over = [run for run in runs if run.state not in ("queued", "running")]
        lost = len({run.seed for run in over} - observed.values.keys())
        if not observed.values:
            raise Undecidable("missing", f"{quantity}: no finished run has this figure")
        if lost > MOST_LOST * len(over):
            raise Undecidable("unpaired", f"{quantity}: {lost} of {len(over)} runs ended without this figure")
        return observed

    def by_seed(self, expression: Expression) -> dict[int, float]:
        """Return one number a seed that all parts of the expression have. Errors: Undecidable."""
        match expression:
            case Quantity():
                return self._values(expression, self.observed(expression))
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
            sizes = [v for part in _parts(expression) for v in self.by_seed(part).values()]
            return Sample(values, scale=max(map(abs, sizes), default=0.0))
        if min(values) <= 0:
            raise Undecidable("missing", f"{expression}: is not positive in every run, so it has no logarithm")
        slack = math.fsum(self._half_step(part) for part in (expression, *_parts(expression)))
        return Sample([math.log(value) for value in values], logs=True, slack=slack)

    def _half_step(self, part: Expression) -> float:
        """Return half a step of a ladder, on the logarithm: between two levels nothing was tried."""
        ladder = self._ladder(part) if isinstance(part, Largest) else {}
        return max((half for _, half in ladder.values()), default=0.0)

    def _find_limits(self, expression: Expression) -> None:
        """Find when runs ended that did not reach their target, which cuts the times of all. Errors: Undecidable."""
        times = [q for q in quantities(expression) if find_metric(q.metric).kind == "time to target"]
        if not times:
            return
        all_observed = [self.observed(quantity) for quantity in times]
        self.limits = [limit for observed in all_observed for limit in observed.limits.values()]
        if not any(math.isfinite(value) for observed in all_observed for value in observed.values.values()):
            raise Undecidable("censored", f"{expression}: no run reached the target")

    def count(self, condition: Condition) -> Count:
        """Return in how many runs a condition holds; a run that failed says nothing."""
        values = [value for run in self.arm(condition.of) if (value := _figure(condition.of, run)) is not None]
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
        return Timed(ratios, rounds, Sample(list((logs or {}).values()), logs=True))

    def _slopes(self, slope: Slope) -> dict[int, float]:
        points: dict[int, list[tuple[float, float]]] = {}
        if slope.over == DEPTH:
            for run in self.arm(slope.of):
                if run.state == "done":
                    points[run.seed] = list(_by_depth(slope.of, run))
        else:
            for level, runs in _levels(slope.of, self.runs, slope.over, self.best_of).items():
                values = self._values(slope.of, self.observed(slope.of, self._chosen(slope.of, runs)))
                for seed, value in values.items():
                    points.setdefault(seed, []).append((level, value))
            most = max(map(len, points.values()), default=0)
            points = {seed: pairs for seed, pairs in points.items() if len(pairs) == most}
        return {seed: _least_squares(slope, pairs) for seed, pairs in points.items()}

    def _ladder(self, largest: Largest) -> dict[int, tuple[float, float]]:
        """Return for each seed the middle between the last level that passed and the next, and half that step."""
        by_seed: dict[int, dict[float, bool]] = {}
        for level, runs in _levels(largest.condition.of, self.runs, largest.key, self.best_of).items():
            for run in runs:
                if (value := _figure(largest.condition.of, run)) is not None:
                    by_seed.setdefault(run.seed, {})[level] = largest.condition.holds(value)
        most = max(map(len, by_seed.values()), default=0)
        found = {}
        for seed, passed in by_seed.items():
            if len(passed) < most:
                continue  # a level is missing
            levels = sorted(passed)
            first = next((i for i, level in enumerate(levels) if not passed[level]), None)
            if not first:
                where = "the smallest level fails" if first == 0 else "the largest level passes"
                raise Undecidable("edge", f"{largest}: {where} with seed {seed}: try more levels")
            low, high = math.log(levels[first - 1]), math.log(levels[first])
            found[seed] = ((low + high) / 2, (high - low) / 2)
        return found


def _figure(quantity: Quantity, run: Run) -> float | None:
    """Return a metric of one run in its unit, for a condition; None where the run is not over or lacks it."""
    if run.summary is None or run.state not in ("done", "diverged"):
        return None
    metric = find_metric(quantity.metric)
    value = metric.derive(run.summary, target_of(run.config.get("data.name")))
    value = math.inf if isinstance(value, Censored) else value
    if value is None or math.isnan(value):
        return None
    return abs(value * metric.scale) if quantity.absolute else value * metric.scale


def _bench_ratio(quantity: Quantity, runs: Sequence[Run]) -> tuple[float, float, float, int]:
    """Return the logarithm of the latest bench's ratio, its interval widened by the control's, and the rounds."""
    if quantity.metric not in BENCH_ONLY:
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


def _least_squares(slope: Slope, points: Sequence[tuple[float, float]]) -> float:
    if len(points) < FEWEST_LEVELS:
        raise Undecidable("missing", f"{slope}: a run has {len(points)} levels; a slope needs {FEWEST_LEVELS}")
    if any((slope.log_over and x <= 0) or (slope.log_of and y <= 0) for x, y in points):
        raise Undecidable("missing", f"{slope}: a value is not positive, so it has no logarithm")
    xs = [math.log(x) if slope.log_over else x for x, _ in points]
    ys = [math.log(y) if slope.log_of else y for _, y in points]
    return statistics.linear_regression(xs, ys).slope


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


def _parts(expression: Expression) -> list[Expression]:
    match expression:
        case Difference(a, b) | Ratio(a, b, _):
            return [*_parts(a), *_parts(b)] if isinstance(expression, Difference) else [a, b, *_parts(a), *_parts(b)]
        case Quantity() | Slope():
            return [expression]
    return []


def _shared(a: Mapping[int, float], b: Mapping[int, float]) -> list[int]:
    return sorted(a.keys() & b.keys())
