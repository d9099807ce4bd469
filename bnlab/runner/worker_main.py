"""A worker in a process of its own: `python -m bnlab.runner.worker_main FD` takes requests from a pipe, in turn.

Requests and answers are JSON, so that neither side can make the other run code. SIGINT asks the job that runs to stop,
with a checkpoint; the process stays. When the supervisor is gone, kill -9 included, this process ends at once.

    {"do": "preflight", "trees": [...]}   ->  {"identities": [...]} or {"error": "IncompatibleError", "text": ...}
    {"do": "run", "job": {...}}           ->  {"tell": "advanced", "with": [..]} .. {"result": {...}}
                                              {"counts": true}  where time begins to count for --timeout
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from bnlab.errors import BnlabError
from bnlab.record.plain_files import open_plain
from bnlab.training.callbacks import Callback
from bnlab.training.job import INTERRUPTED, Job, JobResult, Stop

LOOK_SECONDS = 0.1  # how often it is looked whether the supervisor is there
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
LAST_SECONDS = 10.0  # for the checkpoint of a job that was asked to stop before the supervisor went


class _PipeCallback(Callback):
    """Passes on what jobs report; nobody may be there any more."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            send(self._pipe, message)

    def _tell(self, name: str, *values: object) -> None:
        self._send({"tell": name, "with": values})

    def job_started(self, index: int, label: str, total_steps: int) -> None:
        self._send({"counts": True})
        self._tell("job_started", index, label, total_steps)

    def advanced(self, step: int, loss: float, images_per_second: float) -> None:
        self._tell("advanced", step, loss, images_per_second)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._tell("evaluated", step, metrics)

    def noted(self, text: str) -> None:
        self._tell("noted", text)

    def waits(self, text: str) -> None:
        self._send({"counts": False})
        self.noted(text)


def send(pipe: Connection, message: Mapping[str, Any]) -> None:
    """Send one message. Errors: OSError when the other side is gone."""
    pipe.send_bytes(json.dumps(message).encode())


def receive(pipe: Connection) -> dict[str, Any]:
    """Wait for one message. Errors: EOFError or OSError when the other side is gone."""
    message: dict[str, Any] = json.loads(pipe.recv_bytes())
    return message


class _Signals:
    """Passes SIGINT on to the job that runs, and ends this process after its supervisor."""

    def __init__(self) -> None:
        self._stop: Stop | None = None  # of the job that runs
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray blocks it in what it starts
        signal.signal(signal.SIGINT, self._asked)
        for number in (signal.SIGTERM, signal.SIGUSR2):  # Slurm sends them to every process; the supervisor decides
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTSTP, self._paused)
        threading.Thread(target=self._end_after, args=[os.getppid()], daemon=True).start()

    def _paused(self, number: int, frame: FrameType | None) -> None:
        from bnlab.timing import pause  # torch

        pause(number, frame)

    def _asked(self, *_: object) -> None:
        if self._stop is not None:
            self._stop.request()

    @contextlib.contextmanager
    def job(self) -> Iterator[Stop]:
        """Yield what the job that runs meanwhile must look at."""
        self._stop = Stop()
        try:
            yield self._stop
        finally:
            self._stop = None

    def _end_after(self, supervisor: int) -> None:
        while os.getppid() == supervisor:
            time.sleep(LOOK_SECONDS)
        end = time.monotonic() + LAST_SECONDS
        while (stop := self._stop) is not None and stop.requested and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        os._exit(1)


def main(descriptor: int) -> None:
    """Answer requests until the pipe ends."""
    pipe, signals = Connection(descriptor), _Signals()
    callback = _PipeCallback(pipe)
    faulthandler.enable()

    _end_with_supervisor(True)
    from bnlab.experiment import run  # torch

    _end_with_supervisor(False)  # a job that was asked to stop may save its checkpoint

    while True:
        request = receive(pipe)
        if request["do"] == "preflight":
            send(pipe, _checked(run.preflight, request["trees"]))
            continue
        job = Job.of_plain(request["job"])
        send(pipe, {"counts": True})
        try:
            with signals.job() as stop, _output_in(job.folder / "run.log"):
                result = run.run(job, callback, stop)
        except KeyboardInterrupt:
            result = JobResult("interrupted", INTERRUPTED)
        send(pipe, {"result": asdict(result)})


def _end_with_supervisor(wanted: bool) -> None:
    """Have the kernel kill this process as soon as the supervisor dies: while torch is loaded no thread hears of it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL if wanted else 0)


def _checked(preflight: Callable[[Any], list[str]], trees: Any) -> dict[str, Any]:
    try:
        return {"identities": preflight(trees)}
    except BnlabError as error:
        return {"error": type(error).__name__, "text": str(error)}


@contextlib.contextmanager
def _output_in(log: Path) -> Iterator[None]:
    """Let what libraries print, and the last lines of a crash, go into the job's log."""
    kept = [os.dup(1), os.dup(2)]
    try:
        file = open_plain(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError:  # the job itself will say so
        file = os.dup(2)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in enumerate(kept, 1):
            os.dup2(saved, number)
            os.close(saved)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except (EOFError, OSError):  # the supervisor is gone
        os._exit(1)
