"""The command line while jobs run elsewhere: it tells how they end, and lets them end when it is asked to.

What it tells is read from their folders, the same under every launcher.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from bnlab.errors import RecordError
from bnlab.record.plain_files import open_plain, read_plain
from bnlab.record.read import flatten
from bnlab.record.run_folder import read_status
from bnlab.runner import slurm
from bnlab.runner.parent import MARK
from bnlab.training.callbacks import Callback
from bnlab.training.job import Job

LOOK_SECONDS = 0.25
TOGETHER_SECONDS = 1.0  # signals so close are one: `timeout` sends SIGTERM to the process and to its group
ASKED_BY = frozenset({signal.SIGINT, signal.SIGTERM})


@contextmanager
def asked_to_stop(folder: Path) -> Iterator[list[int]]:
    """Turn Ctrl-C, SIGTERM and, in a Slurm job, SIGUSR2 into the mark that lets jobs end; yield the list of what came.

    Nothing is torn out of the launcher: it comes back when its jobs have saved their checkpoints. A second signal does
    tear. All are blocked, which what the launcher starts inherits: the Ctrl-C of a terminal and the SIGTERM of
    `timeout` go to all of a group, and Ray and joblib would end their processes on it. (So a local Ray, which ends its
    own by SIGTERM, waits a second for each of them before it kills them.)
    """
    (folder / MARK).unlink(missing_ok=True)  # of a command line that was killed
    asked_by = {*ASKED_BY, signal.SIGUSR2} if slurm.job() else ASKED_BY
    came: list[int] = []
    over, first = False, 0.0

    def asked_again(number: int) -> bool:
        nonlocal first
        first = first or time.monotonic()
        came.append(number)
        with contextlib.suppress(OSError):
            os.close(open_plain(folder / MARK, os.O_WRONLY | os.O_CREAT))
        return time.monotonic() - first > TOGETHER_SECONDS

    def handle(number: int, frame: FrameType | None) -> None:  # where a thread of a library took the signal
        if asked_again(number):
            raise KeyboardInterrupt

    def wait() -> None:
        while True:
            number = signal.sigwait(asked_by)
            if over:
                return
            if asked_again(number):
                _thread.interrupt_main()  # as Ctrl-C: Ray has put its own handler of SIGTERM in place of ours

    before = {number: signal.signal(number, handle) for number in asked_by}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, asked_by)
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    try:
        yield came
    finally:
        over = True
        signal.pthread_kill(waiting.ident or 0, signal.SIGTERM)
        waiting.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        (folder / MARK).unlink(missing_ok=True)


@contextmanager
def told(
    folder: Path, jobs: Sequence[Job], attempts: int, callback: Callback, searched: Sequence[str] = ()
) -> Iterator[None]:
    """Tell `callback` of each job below `folder` that ends meanwhile; a failed one may have `attempts` in all.

    `jobs` are those known beforehand; a search makes others, told apart by the keys `searched`.
    """
    follower = _Monitor(folder, jobs, attempts, callback, searched)
    over = threading.Event()

    def follow() -> None:
        while not over.wait(LOOK_SECONDS):
            follower.look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        follower.look(last=True)


class _Monitor:
    def __init__(
        self, folder: Path, jobs: Sequence[Job], attempts: int, callback: Callback, searched: Sequence[str]
    ) -> None:
        self._folder, self._callback, self._attempts, self._searched = folder, callback, attempts, searched
        self._jobs = {job.folder.name: job for job in jobs}
        self._seen = {name: _version(folder / name) for name in self._jobs}
        self._ended: set[str] = set()
        self._failures: dict[str, int] = {}

    def look(self, *, last: bool = False) -> None:
        """Tell of what ended since the last look; the last one tells of failures that were not tried again, too."""
        names = self._jobs or sorted((p.name for p in self._folder.iterdir() if p.name.isdigit()), key=int)
        for name in names:
            if name not in self._ended:
                self._look(name, last)

    def _look(self, name: str, last: bool) -> None:
        folder = self._folder / name
        version = _version(folder)
        if version == self._seen.get(name) and not (last and name in self._failures):
            return
        try:
            status = read_status(folder) or {}
        except RecordError:
            return
        self._seen[name] = version
        state: Any = status.get("state", "running")
        if state == "running":
            return
        if state in ("failed", "killed"):
            self._failures[name] = self._failures.get(name, 0) + 1
            if self._failures[name] < self._attempts and not last:
                return
        self._ended.add(name)
        job = self._jobs.get(name)
        index, label = (int(name), self._found_in(status)) if job is None else (job.index, job.label)
        self._callback.job_started(index, label, 0)
        self._callback.job_ended(index, state, _headline(folder, status))

    def _found_in(self, status: dict[str, Any]) -> str:
        """Return what tells a job of a search from the others."""
        config = flatten(status.get("config"))
        values = ((key, config.get(key, config.get(f"{key}.name"))) for key in self._searched)
        return " ".join(f"{key}={value}" for key, value in values)


def _version(folder: Path) -> tuple[int, int] | None:
    """Return what differs when the status was written anew."""
    try:
        found = (folder / "status.json").lstat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _headline(folder: Path, status: dict[str, Any]) -> str:
    """Return in a few words how a job ended."""
    if status["state"] != "done":
        return str(status.get("error") or "").partition("\n")[0]
    try:
        summary = json.loads(read_plain(folder / "summary.json"))
        return f"test {100 * summary['curve']['test.accuracy'][-1]:.2f} %, {summary['train_seconds']:.1f} s"
    except (OSError, ValueError, LookupError, TypeError):
        return ""
