"""What lies in the folder of runs: sweeps and runs with their sizes and notes, and how they are removed.

Nothing is removed that is no folder of runs, lies outside of theirs, is reached through a link or is at work.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bnlab.errors import BusyError, ConfigError
from bnlab.record.evaluations import CURRENT, DIGESTS, PREVIOUS
from bnlab.record.latest import STAMP, names, runs_folder
from bnlab.record.plain_files import beside_of, read_plain, write_bytes
from bnlab.record.read import Run, is_locked, read_runs
from bnlab.record.run_folder import FINAL, held

NOTE = "note.txt"
LONGEST_NOTE = 200  # letters
WEIGHTS = (CURRENT, PREVIOUS, DIGESTS)


@dataclass(frozen=True)
class Entry:
    """A sweep, a bench or a single run."""

    folder: Path
    begun: float  # seconds since the epoch: of its name, else of the folder
    runs: Sequence[Run]
    unreadable: int
    size: int  # bytes
    note: str

    @property
    def kind(self) -> Literal["run", "sweep", "bench"]:
        if any(run.is_bench for run in self.runs):
            return "bench"
        return "run" if [run.folder for run in self.runs] == [self.folder] else "sweep"

    @property
    def is_failed(self) -> bool:
        """Whether nothing came of it, and nothing can without being started anew."""
        return (
            bool(self.runs)
            and not self.unreadable
            and all(run.state in ("failed", "killed", "refused") for run in self.runs)
        )

    @property
    def seconds(self) -> float:
        """How long its runs took, those that ended."""
        times = [run.summary.get("wall_seconds") for run in self.runs if run.summary]
        return float(sum(each for each in times if isinstance(each, (int, float))))


def entries() -> Iterator[Entry]:
    """Yield what holds runs in the folder of all runs, from the newest on."""
    base = runs_folder()
    for name in names(base):
        if (entry := entry_of(base / name)).runs or entry.unreadable:
            yield entry


def entry_of(folder: Path) -> Entry:
    """Return what there is to say of a folder of runs."""
    runs, skipped = read_runs([folder])
    runs.sort(key=lambda run: run.order)
    files = [os.path.join(place, name) for place, _, inside in os.walk(folder) for name in inside]
    size = sum(os.lstat(file).st_size for file in files if os.path.lexists(file))
    return Entry(folder, _begun(folder), runs, len(skipped), size, note_of(folder))


def _begun(folder: Path) -> float:
    try:
        return time.mktime(time.strptime(folder.name[:15], "%Y%m%d-%H%M%S"))
    except (ValueError, OverflowError):
        return folder.stat().st_mtime


# ---------------------------------------------------------------- notes


def note_of(folder: Path) -> str:
    """Return what was noted on a run or a sweep, or an empty text."""
    try:
        return _plain(read_plain(folder / NOTE, 4 * LONGEST_NOTE).decode(errors="replace"))
    except OSError:
        return ""


def write_note(folder: Path, text: str) -> None:
    """Note a text of one line, at most LONGEST_NOTE letters, on a run or a sweep; an empty one takes the note away.

    Errors: ConfigError; EnvironmentFault.
    """
    if not any(read_runs([folder])):
        raise ConfigError(f"{folder}: holds no run\n`bnlab runs` lists what does")
    if len(text) > LONGEST_NOTE:
        raise ConfigError(f"the note has {len(text):,} letters\nwrite at most {LONGEST_NOTE}")
    if plain := _plain(text):
        write_bytes(folder / NOTE, plain.encode())
    else:
        (folder / NOTE).unlink(missing_ok=True)


def _plain(text: str) -> str:
    return "".join(char for char in " ".join(text.split()) if char.isprintable())[:LONGEST_NOTE]


# ---------------------------------------------------------------- removal


def check_removable(folder: Path) -> None:
    """Raise ConfigError for what is no folder of runs inside of that of all runs, BusyError for what is at work."""
    base, place = os.path.realpath(runs_folder()), Path(os.path.realpath(folder.parent), folder.name)
    if folder.name in ("", "..") or base not in map(str, place.parents) or folder.is_symlink():
        raise ConfigError(f"{folder}: is no run or sweep in {runs_folder()}\n`bnlab runs` lists them")
    runs, skipped = read_runs([folder])
    if not runs and not skipped and not STAMP.match(folder.name):
        raise ConfigError(f"{folder}: holds no run\n`bnlab runs` lists what does")
    if busy := at_work(folder, runs):
        raise BusyError(f"{busy} is in use by another process\nwait for it, or stop it")


def at_work(folder: Path, runs: Sequence[Run]) -> Path | None:
    """Return what is in use: the folder with these runs, one of them, or the sweep it belongs to."""
    locked = [place for place in (folder, folder.parent) if is_locked(f"{place}/.lock")]
    return next(iter([*locked, *(run.folder for run in runs if run.state == "running")]), None)


def remove(entry: Entry) -> int:
    """Remove a folder of runs; return its bytes. Errors: as of `check_removable`; OSError."""
    check_removable(entry.folder)
    with held(entry.folder):  # so that nobody resumes it meanwhile
        os.rename(entry.folder, beside := beside_of(entry.folder))
    shutil.rmtree(beside)
    return entry.size


def weights_of(entry: Entry) -> dict[Path, int]:
    """Return the bytes of each file of a checkpoint of the runs that are over, the others need theirs."""
    files = [run.folder / name for run in entry.runs if run.state in FINAL for name in WEIGHTS]
    return {file: file.lstat().st_size for file in files if os.path.lexists(file)}


def remove_weights(entry: Entry) -> int:
    """Remove what `weights_of` names, and return the bytes.

    Errors: as of `check_removable`; OSError.
    """
    check_removable(entry.folder)
    files = weights_of(entry)
    for file in files:
        file.unlink()
    return sum(files.values())
