"""The largest levels at which arms learn: sentences, then a row an arm in a terminal, or a row a seed for programs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from bnlab.claims.ladder import Bracket, Levels, Outcome, Searched, median
from bnlab.compare.statistics import coverage_of_range
from bnlab.errors import count_of
from bnlab.interval import Interval
from bnlab.report.console import Terminal, clean
from bnlab.report.figures import MISSING
from bnlab.report.panels import Panel, Picture, Series
from bnlab.report.rows import Row
from bnlab.report.sheet import Plate, Sheet
from bnlab.report.table import Column, bullets, draw, joined, shortened

MOST_ROWS = 48  # of a picture
LONGEST = 48  # characters of a row's name
BESIDE = 1.3  # times the lowest and highest level: how far a picture goes on
FEW = 6  # seeds, below which an interval of ranks is their range


# ---------------------------------------------------------------- in words


def sentences(key: str, arms: Sequence[Searched]) -> Iterator[str]:
    """Yield one for each arm that has a baseline; of arms without, where their largest level lies."""
    name = key.rpartition(".")[2]
    for number, arm in enumerate(arms):
        if not arm.brackets:
            yield f"{arm.label}: no run is over"
        elif (ratios := _ratios(arm, arms, number)) is not None:
            base = arms[arm.baseline or 0].label
            larger = sum(each.low >= 1 for each in ratios.values())
            smaller = sum(each.high <= 1 for each in ratios.values())
            alike, n = len(ratios) - larger - smaller, len(ratios)
            counts = {"larger": larger, "smaller": smaller, "not told apart": alike}
            said = ", ".join(f"{word} in {count} of {n}" for word, count in counts.items() if count)
            where = _within(median(list(ratios.values()))[0])
            yield f"{arm.label}'s largest {name} is {where} times that of {base}: {said} seed{'' if n == 1 else 's'}"
        elif len(arms) == 1 or arm.baseline is None:
            where = _within(median(list(arm.brackets.values()))[0])
            yield f"{arm.label}'s largest {name} is {where}, the median of {count_of(len(arm.brackets), 'seed')}"


def _ratios(arm: Searched, arms: Sequence[Searched], number: int) -> dict[int, Bracket] | None:
    if arm.baseline in (None, number):
        return None
    return arm.over(arms[arm.baseline or 0]) or None


def _within(at: Bracket) -> str:
    """Return `0.16 to 0.32`, or which end is not known."""
    if at.low <= 0 and at.high == math.inf:
        return MISSING
    if at.high == math.inf:
        return f"at least {at.low:.3g}"
    return f"{at.low:.3g} to {at.high:.3g}" if at.low > 0 else f"below {at.high:.3g}"


# ---------------------------------------------------------------- in a terminal


def largest_table(key: str, arms: Sequence[Searched], levels: Levels, out: Terminal) -> Group:
    """Return the answer in words, a row an arm, and how it is to be read."""
    lines = [line for sentence in sentences(key, arms) for line in joined([sentence], out)]
    table, notes = draw(_columns(key, arms), out).lines, list(_notes(key.rpartition(".")[2], arms, levels))
    return Group(*lines, Text(""), *table, Text(""), *bullets(notes, out))


def _columns(key: str, arms: Sequence[Searched]) -> list[Column]:
    name, several = key.rpartition(".")[2], any(len(arm.brackets) > 1 for arm in arms)
    ratios = [_ratios(arm, arms, number) for number, arm in enumerate(arms)]
    later = [sum(each.later for each in arm.brackets.values()) for arm in arms]
    columns = [
        Column("arm", [arm.label for arm in arms], left=True, is_name=True),
        *_bracket_columns(f"largest {name}", [arm.brackets for arm in arms], several),
    ]
    if any(ratios):
        columns += _bracket_columns("times baseline", ratios, several)
    if any(later):
        columns.append(Column("not monotone", [str(count or "") for count in later]))
    return [*columns, Column("runs", [f"{arm.num_runs:,}" for arm in arms], rank=1)]


def _bracket_columns(title: str, each: Sequence[Mapping[int, Bracket] | None], several: bool) -> list[Column]:
    medians = [median(list(brackets.values())) if brackets else None for brackets in each]
    cells = [MISSING if found is None else _within(found[0]) for found in medians]
    columns = [Column(title, cells, left=True)]
    if several:
        ranges = ["" if found is None or found[1] is None else _within(found[1]) for found in medians]
        columns.append(Column("over seeds", ranges, left=True, rank=2))
    return columns


def _notes(name: str, arms: Sequence[Searched], levels: Levels) -> Iterator[str]:
    yield (
        "passes: the run learns (half of the training images are right at its end) and is not lost before "
        "(trainer.stop_when_lost)"
    )
    yield (
        f"A to B: the last {name} that passes, and the first that fails; steps of a factor of "
        f"{levels.resolution or levels.factor:g}"
    )
    seeds = max(len(arm.brackets) for arm in arms)
    if 1 < seeds < FEW:
        yield f"over seeds: the range of {seeds}, which holds the median in {coverage_of_range(seeds):.0%} of cases"
    elif seeds > 1:
        yield "over seeds: the 95% interval of the median"
    if any(each.later for arm in arms for each in arm.brackets.values()):
        yield "not monotone: levels above the first failure that pass all the same"
    low = [arm.label for arm in arms if any(each.low == 0 for each in arm.brackets.values())]
    high = [arm.label for arm in arms if any(each.high == math.inf for each in arm.brackets.values())]
    if low:
        yield f"{', '.join(low)}: fails at the lowest level with a seed; try a lower --from"
    if high:
        yield f"{', '.join(high)}: passes at the highest level with a seed; try a higher --to"


# ---------------------------------------------------------------- as a page


def largest_sheet(key: str, arms: Sequence[Searched], levels: Levels, scope: str) -> Sheet:
    """Return what a page shows; `scope` says what was trained where."""
    name = key.rpartition(".")[2]
    return Sheet(
        f"What is the largest {name} at which each arm learns?",
        list(sentences(key, arms)),
        [scope],
        _columns(key, arms),
        plates=[Plate(f"Every {name} that was tried", largest_picture(key, arms), _tried_columns(arms))],
        notes=list(_notes(name, arms, levels)),
    )


def largest_picture(key: str, arms: Sequence[Searched]) -> Picture:
    """Return every level that was tried, a row an arm and seed, and where the largest lies that passes."""
    levels = [level for arm in arms for tried in arm.tried.values() for level in tried]
    lowest, highest = min(levels, default=1.0) / BESIDE, max(levels, default=1.0) * BESIDE
    colours = dict(zip((i for i, arm in enumerate(arms) if arm.baseline != i), itertools.count(1)))
    rows = []
    for number, arm in enumerate(arms):
        for seed, found in arm.brackets.items():
            at = Interval(math.nan, max(found.low, lowest), min(found.high, highest), 1)
            label, cell = shortened(f"{clean(arm.label)}, seed {seed}", LONGEST), _within(found)
            rows.append(Series(label, [at], colours.get(number, 0), cell=cell, tried=arm.tried[seed]))
    said = ["filled: passes", "hollow: does not", "cross: diverged, or lost before its end"]
    said += ["bar: from the last that passes to the first that does not", "log scale"]
    said += [f"{MOST_ROWS} of {len(rows)} rows"] if len(rows) > MOST_ROWS else []
    title = f"{key.rpartition('.')[2]}, and the bar in which the largest lies"
    return Picture([[Panel(title, rows[:MOST_ROWS], axis="log")]], "; ".join(said))


def _tried_columns(arms: Sequence[Searched]) -> list[Column]:
    rows = [(arm, seed) for arm in arms for seed in arm.brackets]

    def at(outcome: Outcome) -> list[str]:
        levels = [[level for level, came in arm.tried[seed].items() if came == outcome] for arm, seed in rows]
        return [" ".join(f"{level:g}" for level in each) or MISSING for each in levels]

    return [
        Column("", [f"{arm.label}, seed {seed}" for arm, seed in rows], left=True),
        Column("largest", [_within(arm.brackets[seed]) for arm, seed in rows], left=True),
        Column("passes at", at("passes"), left=True),
        Column("does not at", at("fails"), left=True),
        Column("diverged at", at("lost"), left=True),
    ]


# ---------------------------------------------------------------- for programs


def largest_rows(key: str, arms: Sequence[Searched], levels: Levels) -> tuple[dict[str, Any], list[Row]]:
    """Return the head, and for each arm a row a seed, their median and its interval; no `high` where none failed."""
    head = {"key": key, "answer": "; ".join(sentences(key, arms)), "factor": levels.factor}
    head |= {"resolution": levels.resolution, "passes": "learned == 1"}
    rows: list[Row] = []
    for number, arm in enumerate(arms):
        ratios = _ratios(arm, arms, number) or {}
        for seed, found in arm.brackets.items():
            rows.append(_row(arm.label, "seed", seed, found, ratios.get(seed)))
        for kind, each, ratio in zip(("median", "interval"), _medians(arm.brackets), _medians(ratios), strict=True):
            if each is not None:
                rows.append(_row(arm.label, kind, None, each, ratio))
    return head, rows


def _medians(brackets: Mapping[int, Bracket]) -> tuple[Bracket | None, Bracket | None]:
    return median(list(brackets.values())) if brackets else (None, None)


def _row(arm: str, kind: str, seed: int | None, found: Bracket, ratio: Bracket | None) -> Row:
    ends: dict[str, Any] = {"low": found.low, "high": found.high}
    ends |= {"ratio_low": ratio and ratio.low, "ratio_high": ratio and ratio.high}
    known = {name: None if value == math.inf else value for name, value in ends.items()}
    return {"arm": arm, "row": kind, "seed": seed, **known, "later": found.later if kind == "seed" else None}
