"""A worker in a process of its own: `python -m bnlab.runner.worker_main FD` takes requests from a pipe, in turn.

Requests and answers are JSON, so that neither side can make the other run code. The pipe's end means that the
supervisor is gone, kill -9 included: then this process ends at once.

    {"do": "preflight", "trees": [...]}        ->  {"identities": [...]} or {"error": "IncompatibleError", "text": ...}
    {"do": "run", "number": 3, "job": {...}}   ->  {"tell": "advanced", "with": [..]} .. {"ending": {...}}
                                                   {"counts": true}  where time begins to count for --timeout
    {"do": "stop", "number": 3}                    ends that run, with a checkpoint; the process stays
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bnlab.errors import BnlabError
from bnlab.record.plain_files import open_plain
from bnlab.training.callbacks import Callback
from bnlab.training.job import INTERRUPTED, Job, JobResult, Stop

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
LAST_SECONDS = 10.0  # for the checkpoint of a job that was asked to stop before the supervisor went


class _PipeCallback(Callback):
    """Passes on what jobs report."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def _tell(self, name: str, *values: object) -> None:
        send(self._pipe, {"tell": name, "with": values})

    def job_started(self, index: int, label: str, total_steps: int) -> None:
        send(self._pipe, {"counts": True})
        self._tell("job_started", index, label, total_steps)

    def advanced(self, step: int, loss: float, images_per_second: float) -> None:
        self._tell("advanced", step, loss, images_per_second)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._tell("evaluated", step, metrics)

    def noted(self, text: str) -> None:
        self._tell("noted", text)

    def waits(self, text: str) -> None:
        send(self._pipe, {"counts": False})
        self.noted(text)


def send(pipe: Connection, message: Mapping[str, Any]) -> None:
    """Send one message. Errors: OSError when the other side is gone."""
    pipe.send_bytes(json.dumps(message).encode())


def receive(pipe: Connection) -> dict[str, Any]:
    """Wait for one message. Errors: EOFError or OSError when the other side is gone."""
    message: dict[str, Any] = json.loads(pipe.recv_bytes())
    return message


class _RequestReader:
    """Takes in requests beside the job that runs; a wish to stop it is heard at once."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._requests = queue.SimpleQueue[dict[str, Any]]()
        self._stop, self._number = Stop(), -1
        self._unwanted: set[int] = set()  # runs that are to stop
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray blocks it in what it starts
        signal.signal(signal.SIGINT, lambda *_: self._stop.request())
        for number in (signal.SIGTERM, signal.SIGUSR2):  # Slurm sends them to every process; the supervisor decides
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> dict[str, Any]:
        """Wait for a request."""
        self._number = -1
        return self._requests.get()

    def stop_of(self, number: int) -> Stop:
        """Return what run `number` must look at; it may be unwanted already."""
        self._stop = Stop()
        self._number = number
        if number in self._unwanted:  # never set to False: a request may come just now
            self._stop.request()
        return self._stop

    def _read(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                request = receive(self._pipe)
                if request["do"] != "stop":
                    self._requests.put(request)
                    continue
                self._unwanted.add(request["number"])
                if request["number"] == self._number:
                    os.kill(os.getpid(), signal.SIGINT)  # Python calls the handler in the main thread
        end = time.monotonic() + LAST_SECONDS
        while self._stop.requested and self._number >= 0 and time.monotonic() < end:
            time.sleep(0.05)
        os._exit(1)


def main(descriptor: int) -> None:
    """Answer requests until the pipe ends."""
    pipe = Connection(descriptor)
    desk, teller = _RequestReader(pipe), _PipeCallback(pipe)
    faulthandler.enable()

    _end_with_supervisor(True)
    from bnlab.experiment import run  # torch

    _end_with_supervisor(False)  # a job that was asked to stop may save its checkpoint

    while True:
        request = desk.next()
        if request["do"] == "preflight":
            send(pipe, _checked(run.preflight, request["trees"]))
            continue
        job = Job.of_plain(request["job"])
        send(pipe, {"counts": True})
        try:
            with _output_in(job.folder / "run.log"):
                ending = run.run(job, teller, desk.stop_of(request["number"]))
        except KeyboardInterrupt:
            ending = JobResult("interrupted", INTERRUPTED)
        send(pipe, {"ending": asdict(ending)})


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
    """Let what libraries print, and the last words of a crash, go into the job's log."""
    kept = [os.dup(1), os.dup(2)]
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
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
    main(int(sys.argv[1]))
