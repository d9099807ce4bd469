"""From runs to arms: what tells them apart, which runs belong together, and how an arm is called.

An arm is all runs that differ in the seed only. Of the keys that differ between arms only those are shown that the keys
before them do not already settle: with `norm.name` shown, `norm.size` says nothing more where only ghost has a size.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bnlab.compare.result import Value
from bnlab.errors import ConfigError, did_you_mean
from bnlab.metrics import bench_width
from bnlab.record.read import Run

# The seed tells the runs of an arm apart. The others say what a run is called, where its data lie (its fingerprint says
# which they are) and how long to wait for another worker: a test holds the tables equal, for every strategy and
# statistic of evaluation.
NOT_COMPARED = frozenset({"seed", "name", "data.root", "data.path", "trainer.timeout", "incompatible"})
FIRST_KEYS = ("norm.name", "model.name", "data.name", "optim.name", "schedule.name")
NORM_ORDER = ("none", "batch", "ghost", "instance", "layer")
OVER = ("done", "diverged")  # states with a summary
MISSING = object()  # a key that a run does not have; null is a value


@dataclass
class Arm:
    """All runs of one configuration; several runs of a seed only where `--by` pools other keys."""

    values: dict[str, Value]  # of the changed keys that it has
    label: str = ""
    runs: list[Run] = field(default_factory=list)
    pooled: dict[str, list[Value]] = field(default_factory=dict)  # keys that differ within the arm
    best: dict[str, Value] = field(default_factory=dict)  # the setting its runs were chosen for, where one was

    def done(self) -> list[Run]:
        """Return the finished runs."""
        return [run for run in self.runs if run.state == "done"]

    def states(self) -> dict[str, int]:
        """Count the runs by state."""
        return dict(Counter(run.state for run in self.runs))


def sections_of(runs: Sequence[Run]) -> list[list[Run]]:
    """Split runs by the data they were made on: name and fingerprint, in the order of their names, trainings first.

    What was timed by `bnlab bench` is a section of its own: it has other figures than a training.
    A run that ended before its fingerprint was known goes with the other runs on data of that name.
    """
    known = {_data_of(run): mark for run in runs if (mark := _fingerprint(run)) is not None}
    sections: dict[tuple[bool, str, str], list[Run]] = {}
    for run in runs:
        name = _data_of(run)
        sections.setdefault((run.is_bench, name, _fingerprint(run) or known.get(name, "")), []).append(run)
    return [sections[key] for key in sorted(sections)]


def data_names(sections: Sequence[Sequence[Run]]) -> list[str]:
    """Return for each section what tells its data from other data of the same name; empty where there are none.

    That are the keys of the data that differ, `digits (train_size=100)`, or else the fingerprint.
    """
    names: list[str] = []
    for section in sections:
        name = _data_of(section[0])
        same = [other for other in sections if _data_of(other[0]) == name and other[0].is_bench == section[0].is_bench]
        if len(same) == 1:
            names.append("")
            continue
        keys = dict.fromkeys(key for other in same for run in other for key in run.config if key.startswith("data."))
        values = {key: [distinct(key, other) for other in same] for key in keys}
        apart = [key for key, each in values.items() if any(one != each[0] for one in each)]
        own = {key: distinct(key, section) for key in apart}
        parts = [f"{_short(key)}={text_of(of[0])}" for key, of in own.items() if len(of) == 1]
        parts = parts or [f"fingerprint {(_fingerprint(section[0]) or 'not known')[:8]}"]
        names.append(f"{name} ({', '.join(parts)})")
    return names


def without_duplicates(runs: Sequence[Run]) -> tuple[list[Run], int]:
    """Keep one run of each configuration and seed and count those left out.

    Kept is the latest that is over or else the latest; of benches the one whose ratio, or where this is the baseline
    whose control, has the narrowest interval.
    """
    keys = differing_keys(runs)
    kept: dict[tuple[object, ...], Run] = {}
    for run in runs:
        key = (run.seed, *(run.config.get(k, MISSING) for k in keys))
        if key not in kept or _precedence(run) > _precedence(kept[key]):
            kept[key] = run
    return list(kept.values()), len(runs) - len(kept)


def _precedence(run: Run) -> tuple[bool, float, int]:
    width = bench_width(run.summary) if run.is_bench and run.summary else 0.0
    return run.state in OVER, -width, run.order


def arms_of(
    runs: Sequence[Run], by: Sequence[str] = (), *, apart: Sequence[str] = (), first: Sequence[str] = ()
) -> tuple[list[Arm], list[str]]:
    """Group runs into arms and return them in order, with the keys that tell them apart.

    With `by` (full keys) runs are grouped by these alone, and each arm says in `pooled` what else differs within it.
    The keys `apart` make no arm and are not pooled; the keys `first` are always shown, before all others.
    """
    changed = list(by) or _shown_keys(runs, apart, first) or [key for key in FIRST_KEYS[:1] if key in runs[0].config]
    arms: dict[tuple[object, ...], Arm] = {}
    for run in runs:
        key = tuple(run.config.get(k, MISSING) for k in changed)
        if key not in arms:
            arms[key] = Arm({k: run.config[k] for k in changed if k in run.config})
        arms[key].runs.append(run)
    ordered = sorted(arms.values(), key=lambda arm: [sort_key(k, arm.values.get(k, MISSING)) for k in changed])
    names = short_names(changed)
    for arm in ordered:
        arm.label = _label(arm.values, names)
        if by:
            inside = [key for key in differing_keys(arm.runs) if key not in changed and key not in apart]
            arm.pooled = {key: distinct(key, arm.runs) for key in inside}
    return ordered, changed


def shared_settings(runs: Sequence[Run]) -> dict[str, Value]:
    """Return the keys and values that all runs have in common."""
    differing = NOT_COMPARED.union(differing_keys(runs))
    return {key: value for key, value in runs[0].config.items() if key not in differing}


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys whose value (or presence) differs between runs: the names of parts first, then as configured."""
    configs = [run.config for run in runs]
    first = configs[0].items() if configs else {}.items()
    pairs = set[tuple[str, object]]().union(*(first ^ config.items() for config in configs))  # much faster than by key
    apart = {key for key, _ in pairs} - NOT_COMPARED
    orders = dict.fromkeys(map(tuple, configs))  # a few: of strategies with other keys
    differing = [key for key in dict.fromkeys(itertools.chain(*orders)) if key in apart]
    return sorted(differing, key=lambda key: FIRST_KEYS.index(key) if key in FIRST_KEYS else len(FIRST_KEYS))


def _shown_keys(runs: Sequence[Run], apart: Sequence[str], first: Sequence[str]) -> list[str]:
    """Return the keys that settle all that differs, leaving out each that those before it already settle."""
    differing = [*first, *(key for key in differing_keys(runs) if key not in apart and key not in first)]
    rows = {tuple(run.config.get(k, MISSING) for k in differing) for run in runs}
    shown = list(range(len(first)))
    for i in range(len(first), len(differing)):
        without = {tuple(row[j] for j in shown) for row in rows}
        with_it = {tuple(row[j] for j in (*shown, i)) for row in rows}
        if len(with_it) > len(without):
            shown.append(i)
    return [differing[i] for i in shown]


def followers(runs: Sequence[Run], changed: Sequence[str]) -> dict[str, list[Value]]:
    """Return keys that differ along with the shown ones, with their values: what a table of these arms does not show.

    A key that some runs lack and that is the same in all others (`norm.size` of ghost alone) is none of them.
    """
    hidden = {key: distinct(key, runs) for key in differing_keys(runs) if key not in changed}
    return {key: values for key, values in hidden.items() if len(values) > 1}


def distinct(key: str, runs: Iterable[Run]) -> list[Value]:
    """Return the values of `key` in order."""
    return sorted({run.config[key] for run in runs if key in run.config}, key=lambda value: sort_key(key, value))


def _data_of(run: Run) -> str:
    return text_of(run.config.get("data.name"))


def _fingerprint(run: Run) -> str | None:
    mark = run.environment.get("data_fingerprint")
    return mark if isinstance(mark, str) else None


# Names and text


def text_of(value: object) -> str:
    """Return a value as one would type it in an override."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Name keys by their part (`norm.name` -> `norm`) or last part (`optim.lr` -> `lr`), where no two then agree."""
    short = {key: _short(key) for key in keys}
    names = list(short.values())
    return {key: name if names.count(name) == 1 else key for key, name in short.items()}


def find_key(word: str, keys: Iterable[str]) -> str:
    """Return the full key meant by `word`: itself, a part (`norm` for `norm.name`) or a last part (`lr`).

    Errors: ConfigError when no key or more than one is meant.
    """
    known = list(keys)
    if word in known:
        return word
    if f"{word}.name" in known:
        return f"{word}.name"
    ending = [key for key in known if key.endswith(f".{word}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ConfigError(f"{word}: more than one key ends so\ngive one of {', '.join(sorted(ending))}")
    raise ConfigError(f"{word}: no run has such a key{did_you_mean(word, [*known, *map(_short, known)])}")


def key_of(word: str, runs: Sequence[Run]) -> str:
    """Return the full key of runs that `word` means; of several that end so the only one in which the runs differ.

    Errors: ConfigError.
    """
    try:
        return find_key(word, {key: None for run in runs for key in run.config})
    except ConfigError:
        told = [k for k in differing_keys(runs) if k.endswith(f".{word}") and len(distinct(k, runs)) > 1]
        if len(told) == 1:  # which is the name that a table gives it
            return told[0]
        raise


def split_list(text: str) -> list[str]:
    """Split at commas that are not inside brackets: `[32,64],[16]` -> two values."""
    return [part.strip() for part in re.split(r",(?![^\[\]]*\])", text)]


def is_value(value: object, text: str) -> bool:
    """Return whether `text` is how one may type `value`: `0.10` is 0.1, `true` is true."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text_of(value) == text


def where_of(conditions: Iterable[str], runs: Sequence[Run]) -> list[Run]:
    """Keep the runs that meet every condition `KEY=VALUE[,VALUE]`.

    Errors: ConfigError for a condition without `=`, an unknown key, or one that no run meets.
    """
    kept = list(runs)
    for condition in conditions:
        word, equals, wanted = condition.partition("=")
        if not equals or not wanted:
            raise ConfigError(f"--where {condition}: must be KEY=VALUE or KEY=VALUE,VALUE")
        key = key_of(word.strip(), runs)
        texts = split_list(wanted)
        met = [run for run in kept if key in run.config and any(is_value(run.config[key], t) for t in texts)]
        if not met:
            there = [text_of(value) for value in distinct(key, kept)]
            raise ConfigError(f"--where {condition}: no run has it\n{key} is {', '.join(there[:12]) or 'not set'}")
        kept = met
    return kept


def sort_key(key: str, value: object) -> tuple[int, int | float, str]:
    """Return what orders the values of `key`.

    Absent, null, false, true, numbers by size, the norms as the tables list them, then text.
    """
    if value is MISSING or value is None:
        return (0 if value is MISSING else 1, 0, "")
    if isinstance(value, (bool, int, float)):
        return (2 if isinstance(value, bool) else 3, value, "")
    text = str(value)
    if key == "norm.name":
        return (4, NORM_ORDER.index(text) if text in NORM_ORDER else len(NORM_ORDER), text)
    return (5, 0, text)


def _short(key: str) -> str:
    part, _, last = key.rpartition(".")
    return part if part and last == "name" else last


def _label(values: Mapping[str, Value], names: Mapping[str, str]) -> str:
    if len(names) == 1:
        return " ".join(text_of(value) for value in values.values()) or "-"
    return " ".join(f"{names[key]}={text_of(value)}" for key, value in values.items()) or "-"
