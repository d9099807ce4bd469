"""The largest level of a key at which arms learn: what `bnlab search` plans, trains, and finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnlab.claims.ladder import Levels, Searched
from bnlab.claims.language import Condition, Quantity
from bnlab.claims.planned import planned
from bnlab.compare.arms import arms_of
from bnlab.compare.baseline import baselines, unknown_baseline
from bnlab.config import compose
from bnlab.errors import ConfigError
from bnlab.record.read import Run
from bnlab.runner.climb import Ladder
from bnlab.runner.pool import Wanted
from bnlab.runner.sweep import labels

PASSES = Condition(Quantity("learned"), "==", 1)
USUAL = ("schedule=constant", "trainer.stop_when_lost=true", "seed=0,1,2")  # unless the command line says otherwise
Preflight = Callable[[Sequence[Mapping[str, Any]]], list[str]]


@dataclass(frozen=True)
class ArmLadders:
    """The ladders of an arm, by seed."""

    label: str
    ladders: Mapping[int, Ladder]
    baseline: int | None  # its number among the arms, which is its own for a baseline

    @property
    def found(self) -> Searched:
        """What they came to so far."""
        begun = {seed: ladder for seed, ladder in self.ladders.items() if ladder.runs}
        brackets = {seed: ladder.bracket for seed, ladder in begun.items()}
        tried = {seed: ladder.tried for seed, ladder in begun.items()}
        return Searched(self.label, brackets, self.baseline, sum(len(each.runs) for each in begun.values()), tried)

    @property
    def runs(self) -> list[Run]:
        """All that are over."""
        return [run for ladder in self.ladders.values() for run in ladder.runs.values()]


def ladders_of(
    key: str, overrides: Sequence[str], levels: Levels, config_dir: Path | None, preflight: Preflight
) -> list[Ladder]:
    """Return a ladder for each arm and seed, all levels checked, none of them tried.

    Errors: ConfigError, EnvironmentFault.
    """
    given = {line.partition("=")[0].lstrip("+~") for line in overrides}
    if key in given:
        raise ConfigError(f"{key}: is what is searched\nleave it out; --from, --to and --factor say which levels")

    def checked(trees: Sequence[Mapping[str, Any]]) -> list[str]:
        try:
            return preflight(trees)
        except ConfigError as error:
            reason = str(error)
            if not reason.startswith(f"{key}="):
                raise
            way = f"levels begin at a hundredth of --from, {levels.all[0]:g}, and end at --to, {levels.top:g}"
            if "whole number" in reason:
                way = f"a search tries fractions: sweep it instead, as bnlab train -m {key}=1,2,4"
            raise ConfigError(f"{reason.partition(chr(10))[0]}\n{way}") from error

    lines = [*overrides, *(line for line in USUAL if line.partition("=")[0] not in given)]
    texts = [f"{level:.6g}" for level in levels.all]
    jobs = compose.planned([*lines, f"{key}={','.join(texts)}"], True, config_dir)
    identities = checked([tree for _, tree in jobs])
    by_rest = dict[tuple[str, ...], dict[float, Wanted]]()
    for (words, tree), label, identity in zip(jobs, labels(jobs), identities, strict=True):
        rest = tuple(word for word in words if word.partition("=")[0] != key)
        run = planned(tree, identity)
        if not isinstance(run.config.get(key), (int, float)):
            raise ConfigError(f"{key}: {' '.join(rest)} has no such number\nleave out what does not have it")
        by_rest.setdefault(rest, {})[float(run.config[key])] = Wanted(tree, run, label)

    def between(rest: tuple[str, ...], level: float) -> Wanted:
        ((_, tree),) = compose.planned([*rest, f"{key}={level:.6g}"], False, config_dir)
        (identity,) = checked([tree])
        return Wanted(tree, planned(tree, identity), f"{key}={level:g}")

    return [
        Ladder(rungs, PASSES, levels.start, levels.resolution, lambda level, rest=rest: between(rest, level))  # type: ignore[misc]
        for rest, rungs in by_rest.items()
    ]


def arms_searched(ladders: Sequence[Ladder], key: str, baseline: str | None) -> list[ArmLadders]:
    """Return ladders by arm, each with its baseline. Errors: ConfigError for a baseline that is no arm."""
    by_run: dict[str, Ladder] = {}
    runs: list[Run] = []
    for ladder in ladders:
        run = ladder.levels[ladder.start].run
        by_run[run.identity] = ladder
        runs.append(run)
    arms, changed = arms_of(runs, apart=[key])
    against = baselines(arms, changed, baseline)
    if against is None and baseline is not None:
        raise unknown_baseline(baseline, arms)
    return [
        ArmLadders(arm.label, {run.seed: by_run[run.identity] for run in arm.runs}, base)
        for arm, base in zip(arms, against or [None] * len(arms), strict=True)
    ]
