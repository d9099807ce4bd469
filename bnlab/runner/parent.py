"""The command line and the processes of its launcher: how they see whether it still runs, and wants the jobs to end.

Those processes must not outlive it, however it ended, kill -9 included; and a Ctrl-C reaches it alone. So they look at
it, and at a mark that it leaves in the sweep's folder, which a cluster's machines share.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from bnlab.record.plain_files import open_plain
from bnlab.runner import slurm

MARK = ".stop"  # in a sweep's folder while its jobs are to end, each with a checkpoint
TOGETHER_SECONDS = 1.0  # signals so close are one: `timeout` sends SIGTERM to the process and to its group
ASKED_BY = frozenset({signal.SIGINT, signal.SIGTERM})


def _started(process: int) -> str:
    """Return when a process started, since numbers are used again; empty for one that is over, a zombie included."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return "" if state in (b"Z", b"X") else rest[18].decode()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
    try:  # a system without /proc
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    return "unknown"


@dataclass(frozen=True)
class ParentProcess:
    """The process that gave the jobs of `folder` out; made there, and carried to others."""

    folder: Path  # of the sweep, absolute
    machine: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: _started(os.getpid()))
    gpus: str | None = field(default_factory=lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))

    @property
    def near(self) -> bool:
        """Whether this is its machine."""
        return socket.gethostname() == self.machine

    @property
    def here(self) -> bool:
        """Whether this is that very process."""
        return self.near and os.getpid() == self.process

    def lives(self) -> bool:
        """Return whether it runs; from another machine that cannot be seen, and its launcher has to end the jobs."""
        return not self.near or _started(self.process) == self.started

    def wants_none(self) -> bool:
        """Return whether jobs are to end and none to start: it said so, or is gone."""
        return (self.folder / MARK).exists() or not self.lives()

    def show_gpus(self) -> None:
        """Let this process see the GPUs that the command line sees.

        Submitit's local launcher and Ray hide all of them from jobs that asked for none.
        """
        if self.near and os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            del os.environ["CUDA_VISIBLE_DEVICES"]
            if self.gpus is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus


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
