"""A run's folder: claimed by one process, its state always readable, its summary there only when it is whole.

queue(path, config, yaml, identity)      config.yaml, and status.json with the state `queued`: a job for anybody
folder = RunFolder(path, identity)       whoever trains it: `running`, tables while it goes on
folder.finish("done", summary=figures)   summary.json, then the final state
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bnlab.errors import BnlabError, BusyError, RecordError
from bnlab.record import origin
from bnlab.record.plain_files import cannot_write, open_plain, read_plain, write_bytes, write_json
from bnlab.record.read import SCHEMA, State
from bnlab.record.tables import Cell, Table

LARGEST_STATUS = 2**20  # bytes; bnlab's own has about 3,000
ORDER = ".order"  # in the folder of all runs: the number of the last one that began there
LOOKS, LOOK_SECONDS = 6, 0.01  # for a lock: `bnlab compare` has it for a moment to see whether anybody has
DIGITS = 19  # of such a number, until the year 2286
FINAL = ("done", "diverged", "refused")  # more of the same would come to the same

STEPS = ("step", "epoch", "loss", "lr", "finite")
EVALS = ("step", "epoch", "split", "metric", "value", "samples")
# Without rows where no layer keeps statistics.
LAYERS = ("step", "epoch", "depth", "layer", "reference", "metric", "value", "channels")
# Clock readings have a table of their own, so that the others are byte-identical between equal runs.
TIMES = ("step", "data_ms", "step_ms", "warmup")
# Of runs that were asked for meters; `-` stands for the whole network.
METERS = ("step", "epoch", "meter", "figure", "layer", "depth", "axis", "value")
TABLES = {"steps": STEPS, "evals": EVALS, "layers": LAYERS, "times": TIMES, "meters": METERS}


def fresh_folder(base: Path, label: str) -> Path:
    """Make and return a folder in `base` that nobody else has: mkdir is atomic, a time of day is not unique."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        base.mkdir(parents=True, exist_ok=True)
        while True:
            folder = base / f"{stamp}-{label}-{secrets.token_hex(3)}"
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue
        os.close(open_plain(base / ORDER, os.O_RDWR | os.O_CREAT))
    except OSError as error:
        raise cannot_write(base, error) from error
    return folder


def next_order(path: Path) -> int:
    """Return a number above those of all runs that began before, for the run in `path`.

    Nanoseconds of the clock; where that went back, one more than the last in the folder that `fresh_folder` was given.
    Errors: EnvironmentFault.
    """
    base = next((folder for folder in list(path.parents)[:2] if os.path.lexists(folder / ORDER)), None)
    if base is None:
        return time.time_ns()
    try:
        with open(open_plain(base / ORDER, os.O_RDWR), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            last = file.read(DIGITS + 1)
            before = int(last) if last.isdigit() and len(last) <= DIGITS else 0
            order = max(time.time_ns(), before + 1)
            file.seek(0)
            file.write(b"%d" % order)
            file.truncate()
    except OSError as error:
        raise cannot_write(base / ORDER, error) from error
    return order


def queue(path: Path, config: Mapping[str, Any], config_yaml: str, identity: str, label: str = "") -> None:
    """Write a job into its folder; of a run that lies there already only the configuration can be another.

    Errors: BusyError when another process holds it; RecordError when another run lies there; EnvironmentFault.
    """
    with held(path):
        before = read_status(path)
        if before is not None:
            _same_run(path, before, identity)
        places = origin.places_of(config)
        if before is not None and before.get("config") == config and origin.is_ours(before.get("origin"), places):
            return
        status = before or dict.fromkeys(("schema", "state", "identity", "order", "started", "pid", "error"))
        status |= {"config": dict(config), "origin": origin.signature(places)}
        if before is None:
            status |= {"schema": SCHEMA, "state": "queued", "identity": identity, "label": label}
        write_bytes(path / "config.yaml", config_yaml.encode(), durable=False)
        write_json(path / "status.json", status, durable=before is not None)


def _same_run(path: Path, status: Mapping[str, Any], identity: str) -> None:
    if status.get("identity") != identity:
        raise RecordError(
            f"{path} holds another run: other settings, data or version of bnlab\nnothing is written over it"
        )


class RunFolder:
    """The record of one run, held by a kernel lock that ends with the process, kill -9 included.

    It takes up what `queue` wrote, or a run that ended early: `earlier` is the state it was in.
    Errors: BusyError when another process holds it; RecordError when another run lies there; EnvironmentFault.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self._tables: dict[str, Table] = {}
        self._lock: int | None = hold(path)
        try:
            self._take_up()
        except BaseException:
            self.release()
            raise

    def _take_up(self) -> None:
        before = read_status(self.path)
        if before is None:
            raise RecordError(f"{self.path}: no job lies here")
        _same_run(self.path, before, self.identity)
        self.earlier = str(before.get("state"))
        if self.earlier in FINAL:
            return
        self._status = before | {"schema": SCHEMA, "state": "running", "pid": os.getpid(), "error": None}
        if before.get("order") is None:  # it begins
            self._status["order"] = next_order(self.path)
            self._status["started"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.path / "status.json", self._status)

    def begin(self, sizes: Mapping[str, int] | None = None, *, metered: bool = False) -> None:
        """Open the tables: new ones, or those of a checkpoint, each cut to the size that it had then.

        That of meters only where `metered`.
        """
        for name, columns in TABLES.items():
            if name != "meters" or metered:
                path = self.path / f"{name}.csv"
                self._tables[name] = Table(path, columns, None if sizes is None else sizes[name])

    def append(self, table: str, rows: Iterable[Sequence[Cell]]) -> None:
        """Add rows to one of the tables."""
        self._tables[table].append(rows)

    @property
    def sizes(self) -> dict[str, int]:
        """Return the bytes of each table."""
        return {name: table.size for name, table in self._tables.items()}

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        write_json(self.path / "environment.json", dict(environment))

    def finish(self, state: State, *, error: str | None = None, summary: Mapping[str, Any] | None = None) -> None:
        """Set the final state; a summary is renamed into place before the state says that it is there."""
        for table in self._tables.values():
            table.close()
        if summary is not None:
            known = {"schema": SCHEMA, "identity": self.identity, "config": self._status["config"]}
            write_json(self.path / "summary.json", known | dict(summary))
        self._status |= {"state": state, "error": error}
        # With its summary a run is over, whether or not there is room for more.
        with contextlib.nullcontext() if summary is None else contextlib.suppress(BnlabError):
            write_json(self.path / "status.json", self._status)
        self.release()

    def release(self) -> None:
        """Let another process have the folder; what lies in it stays as it is. A second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None


def settle(path: Path, state: State, error: str) -> None:
    """Say in a folder whose process died how it ended; nothing where another process holds it or it was over."""
    if not path.is_dir():  # moved meanwhile; it is not made anew
        return
    with contextlib.suppress(RecordError, BusyError), held(path):
        status = read_status(path)
        if status is not None and status.get("state") not in FINAL:
            write_json(path / "status.json", status | {"state": state, "error": error})


def read_status(path: Path) -> dict[str, Any] | None:
    """Return what a folder's status.json says; None without one. Errors: RecordError if it is no record of a run."""
    try:
        found = json.loads(read_plain(path / "status.json", LARGEST_STATUS))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path / 'status.json'}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise RecordError(f"{path / 'status.json'}: is no record of a run")
    return found


def hold(path: Path) -> int:
    """Make the folder where it is missing, lock it and return the lock; closing that ends it.

    Errors: BusyError when another process holds it, EnvironmentFault when nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open_plain(path / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise cannot_write(path, error) from error
    for look in range(LOOKS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if look == LOOKS - 1:
                os.close(lock)
                raise BusyError(f"{path} is in use by another process\nwait for it, or start a new run") from error
            time.sleep(LOOK_SECONDS)
    for left in path.glob(".*.tmp"):  # by a process that was killed while it wrote
        with contextlib.suppress(OSError):
            left.unlink()
    return lock


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a folder meanwhile, so that no other process works on it. Errors: as of `hold`."""
    lock = hold(path)
    try:
        yield
    finally:
        os.close(lock)
