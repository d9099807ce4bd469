"""The list of what lies in the folder of runs: a line a sweep, bench or run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Group

from bnlab.compare.arms import arms_of, short_names, text_of
from bnlab.errors import count_of
from bnlab.record.inventory import Entry
from bnlab.record.latest import short_name
from bnlab.report.bench_report import left_out_note
from bnlab.report.console import Terminal
from bnlab.report.display import duration
from bnlab.report.figures import Cell
from bnlab.report.rows import Row
from bnlab.report.table import Column, bullets, draw

MOST_NORMS = 4  # named in a line, and values of any other key
MOST_KEYS = 3


def runs_table(entries: Sequence[Entry], out: Terminal) -> Group:
    """Return the table: what a word for a run takes as its name, when, what, states, how long, how large."""
    states, when = [_states(entry) for entry in entries], [_when(entry)[:16] for entry in entries]
    columns = [
        Column("name", [short_name(entry.folder.name) for entry in entries], left=True, is_name=True),
        Column("when", when, short=[each[:10] for each in when], left=True, rank=1),
        Column(
            "what",
            [Cell(_what(entry), below=(f"“{entry.note}”",) if entry.note else ()) for entry in entries],
            left=True,
            wraps=True,
        ),
        Column("state", [_told(each) for each in states], left=True, wraps=True),
        Column("took", [duration(entry.seconds) if entry.seconds else "" for entry in entries], rank=3),
        Column("size", [size_text(entry.size) for entry in entries], rank=2),
    ]
    drawn = draw(columns, out)
    return Group(*drawn.lines, *bullets(left_out_note(drawn.left_out), out))


def runs_rows(entries: Sequence[Entry]) -> list[Row]:
    """Return a row an entry; `bytes` and `seconds` are sums over its runs."""
    return [
        {
            "name": short_name(entry.folder.name),
            "folder": str(entry.folder),
            "kind": entry.kind,
            "when": _when(entry),
            "norms": ",".join(_values(entry, "norm.name")),
            "seeds": len(_values(entry, "seed")),
            "models": ",".join(_values(entry, "model.name")),
            "data": ",".join(_values(entry, "data.name")),
            "runs": len(entry.runs),
            "states": _told(_states(entry)),
            "seconds": entry.seconds,
            "bytes": entry.size,
            "note": entry.note,
        }
        for entry in entries
    ]


def entry_line(entry: Entry, size: int) -> str:
    """Return in a line what is about to be removed, and how many bytes of it."""
    return f"{entry.folder}: {_what(entry)}, {_told(_states(entry))}, {size_text(size)}"


def size_text(size: int) -> str:
    """Return bytes as kB, MB or GB."""
    unit, factor = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if size >= pair[1]), ("kB", 1e3))
    return f"{size / factor:,.1f} {unit}"


def _when(entry: Entry) -> str:
    return datetime.fromtimestamp(entry.begun).isoformat(" ", timespec="seconds")


def _what(entry: Entry) -> str:
    norms = _values(entry, "norm.name")
    named = ", ".join(norms) if len(norms) <= MOST_NORMS else f"{len(norms)} norms"
    seeds = _values(entry, "seed")
    times = f"seed {seeds[0]}" if len(seeds) == 1 else count_of(len(seeds), "seed")
    kind = "bench" if entry.kind == "bench" else f"{named} × {times}" if len(entry.runs) > 1 else f"{named}, {times}"
    kind = " × ".join([kind, *_swept(entry)])
    parts = [named, kind] if entry.kind == "bench" else [kind]
    return " · ".join(filter(None, [*parts, *_values(entry, "model.name"), *_values(entry, "data.name")]))


def _swept(entry: Entry) -> list[str]:
    """Return what tells its arms apart beside what is named anyway: each key with its values."""
    arms, changed = arms_of(entry.runs) if len(entry.runs) > 1 else ([], [])
    keys = [key for key in changed if key not in ("norm.name", "model.name", "data.name")]
    if len(keys) > MOST_KEYS:
        return [f"{len(keys)} keys"]
    known = {key: list(dict.fromkeys(text_of(arm.values[key]) for arm in arms if key in arm.values)) for key in keys}
    return [
        f"{name} {', '.join(known[key])}" if len(known[key]) <= MOST_NORMS else f"{len(known[key])} values of {name}"
        for key, name in short_names(keys).items()
    ]


def _values(entry: Entry, key: str) -> list[str]:
    """Return the values that the runs have of a key, each once."""
    found: dict[Any, None] = dict.fromkeys(run.config[key] for run in entry.runs if key in run.config)
    return [text_of(value) for value in found]


def _states(entry: Entry) -> Counter[str]:
    return Counter([*(run.state for run in entry.runs), *["unreadable"] * entry.unreadable])


def _told(states: Counter[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.most_common())
