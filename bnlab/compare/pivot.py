"""Arms of two keys as a matrix: one key down, one across, the main metric in the cells.

    --pivot normxmodel         short names or full keys, joined by an x
    --pivot 'optim.lr x norm'  with spaces around it, quoted

Only these two keys may tell the arms apart. Data sets, which are sections of their own otherwise, stand side by side
where `data` is one of the two: a matrix shows figures and no differences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bnlab.compare.arms import MISSING, distinct, key_of, short_names, sort_key, text_of
from bnlab.compare.notes import named
from bnlab.compare.result import Comparison, Row, Section
from bnlab.errors import ConfigError
from bnlab.record.read import Run

DATA = "data.name"


@dataclass(frozen=True)
class Matrix:
    """One section as a matrix; `cells[i][j]` is the arm of `rows[i]` and `columns[j]`, None where there is no run."""

    section: Section
    keys: tuple[str, str]
    rows: list[object]  # values of the first key, MISSING for arms without it
    columns: list[object]
    cells: list[list[Row | None]]


def check_pivot(text: str, baseline: str | None, sort: str | None, metrics: Sequence[str]) -> None:
    """Raise ConfigError for what can be no pivot, whatever the runs, and for options that mean nothing beside one."""
    if "x" not in text:
        raise ConfigError(
            f"--pivot {text}: must be ROWxCOL\nsuch as --pivot normxmodel, or quoted: --pivot 'norm x model'"
        )
    for option, value in (("--baseline", baseline), ("--sort", sort)):
        if value is not None:
            raise ConfigError(f"{option}: a matrix has no such thing; leave out {option} or --pivot")
    if len(metrics) > 1:
        raise ConfigError(
            f"--metric: a matrix shows one metric, and {len(metrics)} are given\n"
            f"keep one, such as --metric {metrics[0]}, or leave out --pivot"
        )


def pivot_keys(text: str, runs: Sequence[Run]) -> tuple[str, str]:
    """Return the full keys of the rows and the columns: `text` split at the one `x` that has a key on either side.

    Errors: ConfigError where there is none or more than one, and where both keys are the same.
    """
    parts = re.split(r"\s+x\s+", text.strip())
    split = [(text[:i].strip(), text[i + 1 :].strip()) for i, char in enumerate(text) if char == "x"]
    pairs = [(parts[0], parts[1])] if len(parts) == 2 else [(row, column) for row, column in split if row and column]
    readings = {(key_of(r, runs), key_of(c, runs)) for r, c in pairs if _is_key(r, runs) and _is_key(c, runs)}
    if not readings:
        for row, column in pairs:
            if len(pairs) == 1 or _is_key(row, runs) or _is_key(column, runs):
                key_of(row, runs), key_of(column, runs)  # one of them says what is wrong
        raise ConfigError(f"--pivot {text}: names no two keys\ngive ROWxCOL, such as --pivot normxmodel")
    if len(readings) > 1:
        raise ConfigError(f"--pivot {text}: can be read in {len(readings)} ways\nput spaces around the x: 'ROW x COL'")
    ((row, column),) = readings
    if row == column:
        raise ConfigError(f"--pivot {text}: rows and columns are both {row}\ngive two keys")
    return row, column


def refuse_more_keys(
    pivot: str, axes: tuple[str, str], sections: Iterable[tuple[Sequence[str], Sequence[Run]]]
) -> None:
    """Raise ConfigError where other keys than those of the matrix tell arms apart; each section's keys and runs."""
    for changed, runs in sections:
        more = [key for key in changed if key not in axes]
        if more:
            values = [text_of(value) for value in distinct(more[0], runs)]
            names = short_names(axes)
            raise ConfigError(
                f"--pivot {pivot}: the runs differ in {named(more)} too\n"
                f"keep one value (--where {more[0]}={values[0] if values else 'VALUE'}), or choose it on validation "
                f"(--best-of {more[0]}),\nor pool all values (--by {names[axes[0]]} --by {names[axes[1]]})"
            )


def matrices(comparison: Comparison) -> list[Matrix]:
    """Return one matrix a section, or where `data` is an axis one of all trainings and one of all benches."""
    keys = comparison.pivot
    if keys is None:  # no run was readable, so no key is known
        return []
    sections = comparison.sections
    if DATA in keys:
        sections = [merged for is_bench in (False, True) for merged in _side_by_side(sections, keys, is_bench)]
    return [_matrix(section, keys) for section in sections]


def _matrix(section: Section, keys: tuple[str, str]) -> Matrix:
    rows, columns = (
        sorted({row.arm.get(key, MISSING) for row in section.rows}, key=partial(sort_key, key)) for key in keys
    )
    arms = {tuple(row.arm.get(key, MISSING) for key in keys): row for row in section.rows}
    return Matrix(section, keys, rows, columns, [[arms.get((row, column)) for column in columns] for row in rows])


def _side_by_side(sections: Sequence[Section], keys: tuple[str, str], is_bench: bool) -> list[Section]:
    """Return the sections of one kind as one, or as they are where two different data sets have the same name."""
    parts = [section for section in sections if section.is_bench == is_bench]
    names = [str(section.settings.get(DATA)) for section in parts]
    if len(parts) < 2 or len(set(names)) < len(names):
        return parts
    settings = [section.settings for section in parts]
    shared = {key: v for key, v in settings[0].items() if all(key in s and s[key] == v for s in settings)}
    notes: dict[str, None] = dict.fromkeys(_unequal(settings, {*shared, *keys}))
    for name, section in zip(names, parts, strict=True):
        notes |= dict.fromkeys(
            note if all(note in other.notes for other in parts) else f"{name}: {note}" for note in section.notes
        )
    environments = {str(e): e for section in parts for e in section.environments}
    targets = {section.target for section in parts}
    return [
        replace(
            parts[0],
            settings=shared,
            environments=list(environments.values()),
            rows=[row for section in parts for row in section.rows],
            notes=list(notes),
            target=targets.pop() if len(targets) == 1 else None,
        )
    ]


def _unequal(settings: Sequence[Mapping[str, object]], known: set[str]) -> list[str]:
    """Return the note on what the data sets differ in beside themselves."""
    keys = [key for key in settings[0] if key not in known and not key.startswith("data.")]
    values = {key: list(dict.fromkeys(text_of(s[key]) for s in settings if key in s)) for key in keys}
    differing = [f"{key} ({named(texts)})" for key, texts in values.items() if len(texts) > 1]
    return [f"The data sets were not trained alike: {named(differing)}."] if differing else []


def _is_key(word: str, runs: Sequence[Run]) -> bool:
    try:
        key_of(word, runs)
    except ConfigError:
        return False
    return True
