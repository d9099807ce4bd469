"""From a sentence's cells to runs: each must mean one arm, and a key that a sentence goes over must have levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnlab.claims.language import Difference, Exact, Expression, Largest, Quantity, Rate, Ratio, Slope
from bnlab.compare.arms import NOT_COMPARED, arms_of, distinct, key_of, text_of, where_of
from bnlab.compare.slopes import FEWEST_LEVELS
from bnlab.errors import ConfigError
from bnlab.metrics import BENCH, metrics
from bnlab.record.read import Run

DEPTH = "depth"  # what a slope may go over beside the keys of a configuration
BENCH_ONLY = tuple(metric.name for metric in metrics.values() if metric.by.startswith(BENCH))
OF_A_BENCH = (*BENCH_ONLY, "step_ms", "images_per_second")


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
        keys = {key_of(word, kept) for word in free}
    except ConfigError as error:
        raise ConfigError(f"{quantity}: {str(error).removeprefix('--where ')}") from error
    apart = NOT_COMPARED | keys
    arms = {frozenset((k, text_of(v)) for k, v in run.config.items() if k not in apart) for run in kept}
    if len(arms) > 1:
        there = [[f"{k}={text_of(v)}" for k, v in arm.values.items()] for arm in arms_of(kept, apart=sorted(keys))[0]]
        labels = ", ".join(map(" ".join, there[:12])) + (", …" if len(there) > 12 else "")
        raise ConfigError(
            f"{quantity}: means {len(arms)} arms, and must mean one\n"
            f"add what tells them apart, or read each arm at its best with `best_of`; there are: {labels}"
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
    return key_of(word, runs)


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
            check_cells(condition.of, runs, best_of)
        case Largest(key, condition):
            levels_of(condition.of, runs, key, best_of)
        case Slope(of, over) if over != DEPTH:
            for kept in levels_of(of, runs, over, best_of).values():
                _check_best(of, kept, best_of)
        case Slope(of):
            check_cells(of, runs, best_of)
        case Quantity():
            _check_best(expression, arm_of(expression, runs, best_of), best_of)


def _check_best(of: Quantity, runs: Sequence[Run], best_of: Sequence[str]) -> None:
    """Refuse two numbers to choose from: either is at the edge of those tried, so that no run decides."""
    for word in () if runs[0].is_bench else best_of:
        levels = distinct(key := full_key(word, runs), runs)
        if len(levels) < 2:
            there = f"{key}={text_of(levels[0])}" if levels else f"no {key}"
            raise ConfigError(f"{of}: best_of {word} has nothing to choose from: all its runs have {there}")
        if len(levels) == 2 and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in levels):
            raise ConfigError(
                f"{of}: best_of {word} chooses from {key}={','.join(map(text_of, levels))}, and either is at the edge\n"
                "try 3 values of it or more"
            )


def levels_of(of: Quantity, runs: Sequence[Run], word: str, best_of: Sequence[str]) -> dict[float, list[Run]]:
    """Return the runs of an arm at each level of a key, the smallest first. Errors: ConfigError."""
    return by_level(of, arm_of(of, runs, [word, *best_of]), word)


def by_level(of: Quantity, kept: Sequence[Run], word: str) -> dict[float, list[Run]]:
    """Return what `levels_of` does, of the runs of the arm."""
    key = full_key(word, kept)
    levels = distinct(key, kept)
    numbers = [v for v in levels if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(numbers) < FEWEST_LEVELS or len(numbers) < len(levels):
        there = ", ".join(map(text_of, levels)) or "not set"
        raise ConfigError(f"{of} over {word}: needs {FEWEST_LEVELS} numbers or more; {key} is {there}")
    return {float(level): [run for run in kept if run.config.get(key) == level] for level in numbers}
