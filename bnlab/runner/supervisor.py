"""Jobs in a process of their own that is watched: it stays warm from job to job, and is replaced when it died.

Whatever a job does to its process (an exception, `sys.exit`, a segmentation fault, kill -9, too much memory, no end)
costs that job only, with its reason recorded.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from bnlab import errors
from bnlab.errors import BnlabError, ConfigError, EnvironmentFault, count_of
from bnlab.record.run_folder import settle
from bnlab.report.console import messages
from bnlab.report.display import working
from bnlab.runner.parent import ParentProcess
from bnlab.runner.worker_main import receive, send
from bnlab.training.callbacks import Callback
from bnlab.training.job import INTERRUPTED, Job, JobResult, ResultState, Terminated, signals_kept

LOOK_SECONDS = 0.2  # how often time-outs, signals and the parent are looked at
DESERTED_SECONDS = 1.0  # for the same when the command line is gone; a worker that saves just then ends it alone
STOP_SECONDS = 5.0  # for a job to save its checkpoint when it is asked to stop; then it is killed


@dataclass(frozen=True)
class JobOptions:
    """How jobs are run, by the options of `train` and `resume`."""

    timeout: float | None = None  # seconds for one job
    retries: int = 0  # further attempts of a job that failed or died
    fail_fast: bool = False  # start no job after one that was not done
    inline: bool = False  # in the process of the command line
    from_scratch: bool = False  # leave the checkpoints of unfinished jobs


class JobRunner(Protocol):
    """Who trains jobs: a supervised worker, or this very process (inline, or among those of torchrun)."""

    callback: Callback

    def agreed(self) -> AbstractContextManager[None]: ...
    def preflight(self, trees: Sequence[Mapping[str, Any]]) -> list[str]: ...
    def run(self, job: Job) -> JobResult: ...


class Supervisor:
    """One warm worker at a time; leaving its `with` block ends it.

    `place` is the folder that relative paths of data sets start from. `parent` is the command line, in a process of a
    launcher: that and its worker end when it does, and a job ends when it asks for it.
    """

    def __init__(self, options: JobOptions, place: Path | None = None, parent: ParentProcess | None = None) -> None:
        self.options, self.callback = options, Callback()
        self._place, self._parent = place, parent
        if parent is not None:
            threading.Thread(target=_end_after, args=[parent], daemon=True).start()
        self._paused = 0.0  # seconds that Ctrl-Z took
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def agreed(self) -> AbstractContextManager[None]:
        """There is nobody else to agree with, as the processes of torchrun must."""
        return nullcontext()

    def start(self) -> None:
        """Start a worker unless there is one; it loads torch meanwhile."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._pipe, theirs = Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  before its first job; `close` closes it
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bnlab.runner.worker_main", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                cwd=self._place,
                pass_fds=[theirs.fileno()],
                process_group=0,  # a Ctrl-C of the terminal reaches us alone
            )

    def preflight(self, trees: Sequence[Mapping[str, Any]]) -> list[str]:
        """Check jobs before the first starts, and return their identities. Errors: as of `experiment.run.preflight`."""
        self.start()
        assert self._pipe is not None
        try:
            with contextlib.ExitStack() as shown:
                if self._parent is None:
                    tell = shown.enter_context(working(messages()))
                    tell(f"loading torch and checking {count_of(len(trees), 'job')}")
                send(self._pipe, {"do": "preflight", "trees": list(trees)})
                answer = receive(self._pipe)
        except (EOFError, OSError) as error:
            raise EnvironmentFault(f"the worker process ended: {self._death()[1]}\n{self._last_line()}") from error
        except ValueError as error:  # of JSON
            raise ConfigError(f"a number that cannot be written down: {error}") from error
        if "error" in answer:
            raise getattr(errors, answer["error"], EnvironmentFault)(answer["text"])
        identities: list[str] = answer["identities"]
        return identities

    def run(self, job: Job) -> JobResult:
        """Train one job and return what came of it; raise KeyboardInterrupt or Terminated when it is to end."""
        for attempt in range(1 + self.options.retries):
            result = self._attempt(job)
            if result.state not in ("failed", "killed"):
                break
            if attempt < self.options.retries:
                first = result.reason.partition("\n")[0]
                self.callback.noted(f"{job.label or job.folder} {result.state}: {first}; once more")
        return result

    def _attempt(self, job: Job) -> JobResult:
        with signals_kept() as signals, self._pausing():
            try:
                self.start()
                result = self._watched(job, signals)
            except (EOFError, OSError):
                result = _settled(job, *self._death())
            except BaseException:  # of another's signal handler, such as submitit's before it starts the job again
                self._stopped(job)
                raise
        if signals:
            raise KeyboardInterrupt if signals[0] == signal.SIGINT else Terminated(128 + signals[0])
        return result

    def _watched(self, job: Job, signals: list[int]) -> JobResult:
        """Send the job and follow it to its end. Errors: EOFError or OSError when the worker died."""
        assert self._pipe is not None
        send(self._pipe, {"do": "run", "job": job.as_plain()})
        end = math.inf  # the start of a worker takes seconds and does not count, nor does a wait for a GPU
        while True:
            if self._pipe.poll(LOOK_SECONDS):
                answer = receive(self._pipe)
                if "result" in answer:
                    return JobResult(**answer["result"])
                if "counts" in answer:
                    end = self._seconds() + (self.options.timeout or math.inf) if answer["counts"] else math.inf
                    continue
                getattr(self.callback, answer["tell"])(*answer["with"])
            if signals or (self._parent is not None and self._parent.wants_none()):
                return self._stopped(job)
            if self._seconds() >= end:
                return self._stopped(job, f"took longer than {self.options.timeout:g} s (--timeout)")

    def _seconds(self) -> float:
        """Return a clock that stands still while this process is stopped by Ctrl-Z."""
        return time.monotonic() - self._paused

    @contextlib.contextmanager
    def _pausing(self) -> Iterator[None]:
        """Let Ctrl-Z, which the terminal sends to our group alone, stop the worker with us, and `fg` go on."""

        def pause(number: int, frame: FrameType | None) -> None:
            before = time.monotonic()
            if self._process is not None:
                self._process.send_signal(signal.SIGTSTP)
            os.kill(os.getpid(), signal.SIGSTOP)
            self._paused += time.monotonic() - before
            if self._process is not None:
                self._process.send_signal(signal.SIGCONT)

        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
            yield
            return
        signal.signal(signal.SIGTSTP, pause)
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def _stopped(self, job: Job, reason: str = "") -> JobResult:
        """Ask the job to stop, kill it when it does not, and record why."""
        assert self._pipe is not None
        assert self._process is not None
        end = time.monotonic() + STOP_SECONDS
        with contextlib.suppress(EOFError, OSError, ValueError):
            while time.monotonic() < end:
                self._process.send_signal(signal.SIGINT)  # again, since it may not have begun this job before
                if self._pipe.poll(LOOK_SECONDS) and "result" in (answer := receive(self._pipe)):
                    result = JobResult(**answer["result"])
                    too_long = reason and result.state == "interrupted"
                    return _settled(job, "killed", reason) if too_long else result
        self.close()
        return _settled(job, "killed" if reason else "interrupted", reason or INTERRUPTED)

    def _death(self) -> tuple[ResultState, str]:
        """Return how the worker ended, once it has."""
        assert self._process is not None
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()  # it held the run's folder
            return "killed", "its process closed the pipe"
        if code >= 0:
            return "failed", f"its process ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return "killed", f"killed by {name}" + (", by the system if memory was short" if name == "SIGKILL" else "")

    def _last_line(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """End the worker."""
        if self._pipe is not None:
            self._pipe.close()
            self._output.close()
            self._pipe = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end_after(parent: ParentProcess) -> None:
    """End this process after the command line, between jobs too; a job may save its checkpoint first."""
    while parent.lives():
        time.sleep(LOOK_SECONDS)
    time.sleep(DESERTED_SECONDS)
    os._exit(1)


def _settled(job: Job, state: ResultState, reason: str) -> JobResult:
    """Record the end of a job that could not do so itself."""
    try:
        settle(job.folder, state, reason)
    except BnlabError as error:
        reason = f"{reason}; {error}"
    return JobResult(state, reason)
