"""What a sweep was asked for, kept in its folder so that it can be finished; never trusted more than a command line.

While its jobs are done there is a queue of their names, too, from which several processes take them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bnlab.errors import RecordError
from bnlab.record import origin
from bnlab.record.plain_files import cannot_write, open_plain, read_plain, write_bytes, write_json

FILE = "sweep.json"
SCHEMA = 1
LARGEST = 2**20  # bytes
MOST_SEEDS = 1000  # of an arm, that a folder may speak of
QUEUE = ".queue"  # in the folder of a sweep
LONGEST_LINE = 2**11  # bytes of a queue; a file name has at most 255


@dataclass(frozen=True)
class SweepRecord:
    """One sweep: the overrides of its command line, its folder of further configurations."""

    overrides: tuple[str, ...]
    config_dir: Path | None
    search: bool  # jobs were chosen while it went on
    seeds: tuple[int, ...] = ()  # how many an arm had at first, and after each time that some were added
    plan: str | None = None  # the hash of what decides it
    is_ours: bool = True  # this user wrote it, on this machine

    def write(self, folder: Path) -> None:
        """Put it into the sweep's folder. Errors: EnvironmentFault."""
        said = {
            "overrides": list(self.overrides),
            "config_dir": None if self.config_dir is None else str(self.config_dir),
        }
        about = {"search": self.search, "seeds": list(self.seeds), "plan": self.plan}
        write_json(folder / FILE, {"schema": SCHEMA, **said, **about, "origin": origin.signature(said)})

    @classmethod
    def read(cls, folder: Path) -> SweepRecord | None:
        """Return what lies in a folder; None where nothing does. Errors: RecordError if it cannot be read."""
        path = folder / FILE
        try:
            found = json.loads(read_plain(path, LARGEST))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise RecordError(f"{path}: cannot be read ({error})") from error
        known = isinstance(found, dict) and found.get("schema") == SCHEMA
        overrides = found.get("overrides") if known else None
        place = found.get("config_dir") if known else None
        if not isinstance(overrides, list) or not all(map(_is_text, [*overrides, place or ""])):
            raise RecordError(f"{path}: is not the record of a sweep that this version of bnlab can read")
        is_ours = origin.is_ours(found.get("origin"), {"overrides": overrides, "config_dir": place})
        seeds, plan = found.get("seeds"), found.get("plan")  # older ones have neither
        return cls(
            tuple(overrides),
            Path(place) if isinstance(place, str) else None,
            found.get("search") is True,
            tuple(n for n in seeds if type(n) is int and 0 < n <= MOST_SEEDS) if isinstance(seeds, list) else (),
            plan if isinstance(plan, str) else None,
            is_ours,
        )

    def with_seeds(self, number: int) -> SweepRecord:
        """Return it with as many seeds an arm, if that is more than it had."""
        return replace(self, seeds=(*self.seeds, number)) if number > max(self.seeds, default=0) else self


def _is_text(value: object) -> bool:
    """Return whether a value is text that paths and files can hold."""
    try:
        return isinstance(value, str) and "\0" not in value and value.encode().decode() == value
    except UnicodeEncodeError:
        return False


def write_queue(path: Path, names: Sequence[str]) -> None:
    """Write names for `take_name`, a line each; the first is taken first. Errors: EnvironmentFault."""
    write_bytes(path, "".join(f"{json.dumps(name)}\n" for name in reversed(names)).encode(), durable=False)


def take_name(path: Path) -> str | None:
    """Take the next name out of a queue, whoever else does so at the moment; None when it is empty.

    Errors: EnvironmentFault.
    """
    try:
        with open(open_plain(path, os.O_RDWR), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LONGEST_LINE))
            lines = file.read().splitlines(keepends=True)
            if not lines:
                return None
            file.truncate(size - len(lines[-1]))
    except OSError as error:
        raise cannot_write(path, error) from error
    name: str = json.loads(lines[-1])
    return name
