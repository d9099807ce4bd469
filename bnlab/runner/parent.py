"""The command line as a launcher's processes see it: whether it still runs, and whether it wants the jobs to end.

Those processes must not outlive it, however it ended, kill -9 included; and a Ctrl-C reaches it alone. So they look at
it, and at a mark that it leaves in the sweep's folder, which a cluster's machines share.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

MARK = ".stop"  # in a sweep's folder while its jobs are to end, each with a checkpoint


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
