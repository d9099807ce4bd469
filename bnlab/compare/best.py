"""Each arm at its own best setting of a key, chosen on the validation split and on nothing else.

The score of a setting is the mean over the arm's seeds of the final `valid.accuracy`. The seeds are all that the arm
was run with at any setting, and one without a finished run at this setting (diverged, failed, killed, still running,
never started) counts as accuracy 0: a setting cannot win by losing the seeds that go badly, nor by fewer seeds.
The highest score is taken, of equal ones the first in order (the smaller number).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bnlab.compare.arms import MISSING, Arm, differing_keys, distinct, short_names, sort_key, text_of
from bnlab.compare.notes import named
from bnlab.compare.result import Value
from bnlab.errors import ConfigError, count_of
from bnlab.metrics import Metric, find_metric
from bnlab.record.read import Run


@dataclass(frozen=True)
class Setting:
    """One setting of one arm: the values of the chosen keys that it has, its runs, and how it did on validation."""

    values: dict[str, Value]
    runs: list[Run]
    score: float
    num_finished: int  # of the arm's seeds

    @property
    def text(self) -> str:
        """The values, with their names where there are several."""
        names = short_names(list(self.values))
        texts = [text_of(v) if len(names) == 1 else f"{names[k]}={text_of(v)}" for k, v in self.values.items()]
        return " ".join(texts) or "not set"


@dataclass(frozen=True)
class Choice:
    """What one arm was chosen from."""

    label: str
    num_seeds: int
    settings: list[Setting]  # in the order of their values
    chosen: Setting | None  # None where no setting has a finished run

    def values_of(self, key: str) -> list[Value]:
        """Return the values of `key` that were tried."""
        return distinct(key, [run for setting in self.settings for run in setting.runs])


def choose(arms: Sequence[Arm], keys: Sequence[str]) -> list[Choice]:
    """Leave each arm the runs of its best setting of `keys`, note the setting in `arm.best`, and return the choices.

    An arm without any finished run keeps all its runs and has no setting.
    Errors: ConfigError when a finished run has no validation accuracy.
    """
    return [_choose(arm, keys) for arm in arms]


def refuse_without_choice(choices: Sequence[Choice], keys: Sequence[str], runs: Sequence[Run]) -> None:
    """Raise ConfigError for a key of which no arm has more than one value; `choices` are those of all sections."""
    if keys and all(run.is_bench for run in runs):
        raise ConfigError(f"--best-of {keys[0]}: these are benches, which have no validation split to choose on")
    for key in keys:
        if any(len({setting.values.get(key, MISSING) for setting in choice.settings}) > 1 for choice in choices):
            continue
        values = distinct(key, runs)
        if len(values) == 1:
            raise ConfigError(
                f"--best-of {key}: it is {text_of(values[0])} in every run, so there is nothing to choose from\n"
                f"run the arms at several values, such as `bnlab train -m {key}=A,B,C norm=none,batch`"
            )
        raise ConfigError(
            f"--best-of {key}: no arm (runs that differ in the seed and in it only) has more than one value of it\n"
            "where other keys change along with it, give them with --best-of too, or say with --by what makes an arm"
        )


def pairs_of_settings(choices: Sequence[Choice], arm: int, baseline: int) -> int:
    """Return by what a p of two chosen settings is multiplied: the pairs there were, where one side had more to choose.

    Without any difference at most 5% have a pair with p < 5% / pairs, whichever is chosen. From equal grids both sides
    gain alike.
    """
    sizes = [len(choices[i].settings) for i in (arm, baseline)] if choices else [1, 1]
    return 1 if sizes[0] == sizes[1] else sizes[0] * sizes[1]


def _choose(arm: Arm, keys: Sequence[str]) -> Choice:
    grouped: dict[tuple[object, ...], list[Run]] = {}
    for run in arm.runs:
        grouped.setdefault(tuple(run.config.get(key, MISSING) for key in keys), []).append(run)
    seeds = {run.seed for run in arm.runs}
    settings = [
        _setting(grouped[values], keys, seeds)
        for values in sorted(grouped, key=lambda values: [sort_key(k, v) for k, v in zip(keys, values, strict=True)])
    ]
    best = max(settings, key=lambda setting: (setting.score, setting.num_finished))  # the first of equal ones
    if not any(setting.num_finished for setting in settings):
        return Choice(arm.label, len(seeds), settings, None)
    arm.runs, arm.best = best.runs, best.values
    arm.pooled = {key: distinct(key, arm.runs) for key in differing_keys(arm.runs) if key in arm.pooled}
    return Choice(arm.label, len(seeds), settings, best)


def _setting(runs: list[Run], keys: Sequence[str], seeds: set[int]) -> Setting:
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(_validated(run))
    score = math.fsum(math.fsum(accuracies) / len(accuracies) for accuracies in by_seed.values()) / len(seeds)
    finished = {run.seed for run in runs if run.state == "done"}
    values = {key: runs[0].config[key] for key in keys if key in runs[0].config}
    return Setting(values, runs, round(score, 12), len(finished))  # rounded: equal accuracies tie in any order


def _validated(run: Run) -> float:
    """Return the final validation accuracy of a finished run, and 0 for any other or where it is not finite."""
    if run.state != "done":
        return 0.0
    value = find_metric("valid_accuracy").derive(run.summary or {})
    if not isinstance(value, float):
        raise ConfigError(
            f"--best-of: {run.folder} has no validation accuracy, and the test split is never used to choose\n"
            "train with data.valid_size above 0, or leave such runs out with --where"
        )
    return value if math.isfinite(value) else 0.0


# What a reader must know of the choice


def notes_on_choice(choices: Sequence[Choice], keys: Sequence[str], columns: Sequence[Metric]) -> Iterator[str]:
    """Yield how the settings were chosen, and what is doubtful about it, one sentence each; none without a choice."""
    if not choices:
        return
    grids: dict[str, list[str]] = {}
    for choice in choices:
        grids.setdefault(_grid(choice, keys), []).append(choice.label)
    what = " and ".join(keys)
    of = f"{what} ({next(iter(grids))})" if len(grids) == 1 else what
    yield (
        f"Each arm is at its best setting of {of}, chosen by mean validation accuracy at the last evaluation; "
        "the test split was not looked at. The intervals do not include the choice."
    )
    if len(grids) > 1:
        usual = max(grids, key=lambda grid: len(grids[grid]))
        parts = [f"{named(labels)} {grid}" for grid, labels in grids.items() if grid != usual]
        parts.append(f"{named(grids[usual]) if len(grids[usual]) == 1 else 'all others'} {usual}")
        text = "p is multiplied by the number of pairs of settings of two arms that had unequally many"
        yield f"The arms had different grids, and a larger one helps: {'; '.join(parts)}; {text}."
    yield from _lost(choices)
    yield from _edges(choices, keys)
    yield from _undecided(choices)
    flattered = [m.title for m in columns if m.kind == "mean" and (m.curve or "").startswith("valid.")]
    if flattered:
        yield f"{named(flattered)}: on the split that the choice was made on, so it flatters."


def _lost(choices: Sequence[Choice]) -> Iterator[str]:
    lost = [
        f"{choice.label} {setting.text} ({missing} of {count_of(choice.num_seeds, 'seed')})"
        for choice in choices
        for setting in choice.settings
        if choice.chosen and (missing := choice.num_seeds - setting.num_finished)
    ]
    if lost:
        yield f"For the choice a seed without a finished run counts as 0 %: {named(lost)}."


def _edges(choices: Sequence[Choice], keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        at_edge = [
            f"{choice.label} {text_of(choice.chosen.values[key])}"
            for choice in choices
            if choice.chosen and _is_at_edge(choice.chosen.values.get(key), choice.values_of(key))
        ]
        if at_edge:
            yield f"At the edge of the values tried, so a better {key} may lie beyond: {named(at_edge)}."


def _grid(choice: Choice, keys: Sequence[str]) -> str:
    """Return what an arm was chosen from: `0.01, 0.1`, of several keys `lr 0.01, 0.1, momentum 0, 0.9: 4 settings`."""
    if len(keys) == 1:
        return named([setting.text for setting in choice.settings])
    values = [f"{name} {named([*map(text_of, choice.values_of(key))])}" for key, name in short_names(keys).items()]
    return f"{', '.join(values)}: {count_of(len(choice.settings), 'setting')}"


def _undecided(choices: Sequence[Choice]) -> Iterator[str]:
    tied = [
        f"{choice.label} {named([setting.text for setting in equal])}"
        for choice in choices
        if choice.chosen and len(equal := [t for t in choice.settings if t.score == choice.chosen.score]) > 1
    ]
    if tied:
        yield f"Equal on validation, so the first was taken: {named(tied, by='; ')}."
    empty = [choice.label for choice in choices if choice.chosen is None]
    if empty:
        yield f"{named(empty)}: nothing was chosen, since no run is finished; all its runs are counted."


def _is_at_edge(value: Value, tried: Sequence[Value]) -> bool:
    """Return whether `value` is the smallest or largest number tried; nothing is taken to lie below 0."""
    numbers = [v for v in tried if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if value not in numbers or isinstance(value, bool):
        return False
    return len(numbers) == 1 or value == max(numbers) or (value == min(numbers) and value != 0)
