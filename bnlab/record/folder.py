"""A run's folder: claimed by one process, its state always readable, its summary there only when it is whole.

runs/<sweep or date>/<run>/   status.json first (state `running`), tables while it goes on, summary.json last
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from bnlab.errors import RecordError
from bnlab.record.files import cannot_write, write_bytes, write_json
from bnlab.record.tables import Table

SCHEMA = 1
State = Literal["running", "done", "diverged", "failed", "interrupted"]

STEPS = ("step", "epoch", "loss", "lr", "finite")
EVALS = ("step", "epoch", "split", "metric", "value", "samples")
# Without rows where no layer keeps statistics.
LAYERS = ("step", "epoch", "depth", "layer", "reference", "metric", "value", "channels")
# Clock readings have a table of their own, so that the others are byte-identical between equal runs.
TIMES = ("step", "data_ms", "step_ms", "warmup")


def fresh_folder(base: Path, label: str) -> Path:
    """Make and return a folder in `base` that nobody else has: mkdir is atomic, a time of day is not unique."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        base.mkdir(parents=True, exist_ok=True)
        while True:
            folder = base / f"{stamp}-{label}-{secrets.token_hex(3)}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise cannot_write(base, error) from error


class RunFolder:
    """The record of one run, held by a kernel lock that ends with the process, kill -9 included."""

    def __init__(self, path: Path, config: Mapping[str, Any], config_yaml: str, identity: str, started: str) -> None:
        self.path, self.identity = path, identity
        self._lock = _locked(path)
        self._status = {
            "schema": SCHEMA,
            "state": "running",
            "identity": identity,
            "order": time.time_ns(),
            "started": started,
            "pid": os.getpid(),
            "error": None,
            "config": dict(config),
        }
        write_bytes(path / "config.yaml", config_yaml.encode())
        write_json(path / "status.json", self._status)
        self.steps = Table(path / "steps.csv", STEPS)
        self.evals = Table(path / "evals.csv", EVALS)
        self.layers = Table(path / "layers.csv", LAYERS)
        self.times = Table(path / "times.csv", TIMES)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        write_json(self.path / "environment.json", dict(environment))

    def finish(self, state: State, *, error: str | None = None, summary: Mapping[str, Any] | None = None) -> None:
        """Set the final state; a summary is renamed into place before the state says that it is there."""
        self._close_tables()
        if summary is not None:
            known = {"schema": SCHEMA, "identity": self.identity, "config": self._status["config"]}
            write_json(self.path / "summary.json", known | dict(summary))
        self._status |= {"state": state, "error": error}
        write_json(self.path / "status.json", self._status)
        os.close(self._lock)

    def _close_tables(self) -> None:
        for table in (self.steps, self.evals, self.layers, self.times):
            table.close()


def _locked(path: Path) -> int:
    try:
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise RecordError(f"{path} is in use by another process\nwait for it, or start a new run") from error
    return lock
