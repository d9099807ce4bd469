"""Jobs in a worker process that is watched: it stays warm from job to job, and is replaced when it died.

Whatever a job does to its process (an exception, `sys.exit`, a segmentation fault, kill -9, too much memory, no end)
costs that job only, with its reason recorded. The same under every launcher: `Task` is what Hydra's launchers carry to
their own processes, and each of those watches a worker here.
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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bnlab import errors
from bnlab.config import compose
from bnlab.errors import ConfigError, EnvironmentFault, RecordError
from bnlab.record.run_folder import RunFolder, hold, settle
from bnlab.runner.launchers import current_job
from bnlab.runner.parent import ParentProcess
from bnlab.runner.worker_main import receive, send
from bnlab.training.callbacks import Callback
from bnlab.training.job import INTERRUPTED, Job, JobResult, ResultState, Terminated, signals_kept

if TYPE_CHECKING:
    from omegaconf import DictConfig

LOOK_SECONDS = 0.2  # how often time-outs, signals and the process above are looked at
DESERTED_SECONDS = 1.0  # for the same when the command line is gone; a worker that saves just then ends it alone
STOP_SECONDS = 5.0  # for a job to save its checkpoint when it is asked to stop; then it is killed
FAILED_FAST = ".failed-fast"  # lies in a sweep's folder when a job failed and the rest is not to start


@dataclass(frozen=True)
class RetryPolicy:
    """How jobs are looked after."""

    timeout: float | None = None  # seconds for one job
    retries: int = 0  # further attempts of a job that failed or died
    fail_fast: bool = False  # start no job after one that was not done


class Supervisor:
    """One warm worker at a time; leaving its `with` block ends it.

    `place` is the folder that relative paths of data sets start from. `above` is the command line, in a process of a
    launcher: that and its worker end when it does, and a job ends when it asks for it.
    """

    def __init__(self, policy: RetryPolicy, place: Path | None = None, above: ParentProcess | None = None) -> None:
        self.policy, self.callback = policy, Callback()
        self._place, self._above = place, above
        if above is not None:
            threading.Thread(target=self._watch_above, args=[above], daemon=True).start()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._runs = 0

    def agreed(self) -> AbstractContextManager[None]:
        """There is nobody else to agree with, as the processes of torchrun must."""
        return nullcontext()

    def start(self) -> None:
        """Start a worker unless there is one; it loads torch meanwhile."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._pipe, theirs = Pipe()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  what it says before its first job; `close` closes it
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bnlab.runner.worker_main", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
                cwd=self._place,
                pass_fds=[theirs.fileno()],
                process_group=0,  # a Ctrl-C of the terminal reaches us alone
            )

    def preflight(self, trees: Sequence[Mapping[str, Any]]) -> list[str]:
        """Check jobs before the first starts, and return their identities. Errors: as of `worker.preflight`."""
        self.start()
        assert self._pipe is not None
        try:
            send(self._pipe, {"do": "preflight", "trees": list(trees)})
            answer = receive(self._pipe)
        except (EOFError, OSError) as error:
            raise EnvironmentFault(f"the worker process ended: {self._death()[1]}\n{self._last_words()}") from error
        except ValueError as error:  # of JSON
            raise ConfigError(f"a number that cannot be written down: {error}") from error
        if "error" in answer:
            raise getattr(errors, answer["error"], EnvironmentFault)(answer["text"])
        identities: list[str] = answer["identities"]
        return identities

    def run(self, job: Job) -> JobResult:
        """Train one job and return what came of it; raise KeyboardInterrupt or Terminated when it is to end."""
        for attempt in range(1 + self.policy.retries):
            ending = self._attempt(job)
            if ending.state in ("done", "diverged", "interrupted"):
                break
            if attempt < self.policy.retries:
                first = ending.reason.partition("\n")[0]
                self.callback.noted(f"{job.label or job.folder} {ending.state}: {first}; once more")
        self.callback.job_ended(job.index, ending.state, ending.headline)
        return ending

    def _attempt(self, job: Job) -> JobResult:
        with signals_kept() as signals:
            try:
                self.start()
                ending = self._watched(job, signals)
            except (EOFError, OSError):
                ending = self._settled(job, *self._death())
            except BaseException:  # of another's signal handler, such as submitit's before it starts the job again
                self._ended_early(job)
                self.callback.job_ended(job.index, "interrupted", "")
                raise
            if signals:
                self.callback.job_ended(job.index, ending.state, ending.headline)
        if signals:
            raise KeyboardInterrupt if signals[0] == signal.SIGINT else Terminated(128 + signals[0])
        return ending

    def _watched(self, job: Job, signals: list[int]) -> JobResult:
        """Send the job and follow it to its end. Errors: EOFError or OSError when the worker died."""
        assert self._pipe is not None
        self._runs += 1
        send(self._pipe, {"do": "run", "number": self._runs, "job": job.as_plain()})
        end = math.inf  # the start of a worker takes seconds and does not count, nor does a wait for a GPU
        while True:
            if self._pipe.poll(LOOK_SECONDS):
                answer = receive(self._pipe)
                if "ending" in answer:
                    return JobResult(**answer["ending"])
                if "counts" in answer:
                    end = time.monotonic() + (self.policy.timeout or math.inf) if answer["counts"] else math.inf
                    continue
                getattr(self.callback, answer["tell"])(*answer["with"])
            if signals or (self._above is not None and self._above.wants_none()):
                return self._ended_early(job)
            if time.monotonic() >= end:
                return self._ended_early(job, f"took longer than {self.policy.timeout:g} s (--timeout)")

    def _watch_above(self, above: ParentProcess) -> None:
        """End this process after the command line, between jobs too; a job may save its checkpoint first."""
        while above.lives():
            time.sleep(LOOK_SECONDS)
        time.sleep(DESERTED_SECONDS)
        os._exit(1)

    def _ended_early(self, job: Job, reason: str = "") -> JobResult:
        """Ask the job to stop, kill it when it does not, and record why."""
        assert self._pipe is not None
        try:
            send(self._pipe, {"do": "stop", "number": self._runs})
            end = time.monotonic() + STOP_SECONDS
            while self._pipe.poll(max(0.0, end - time.monotonic())):
                if "ending" in (answer := receive(self._pipe)):
                    ending = JobResult(**answer["ending"])
                    stopped = reason and ending.state == "interrupted"
                    return self._settled(job, "killed", reason) if stopped else ending
        except (EOFError, OSError, ValueError):
            pass
        self.close()
        return self._settled(job, "killed" if reason else "interrupted", reason or INTERRUPTED)

    def _settled(self, job: Job, state: ResultState, reason: str) -> JobResult:
        """Record the end of a job that could not do so itself."""
        try:
            if (job.folder / "status.json").exists():
                settle(job.folder, state, reason)
            else:
                RunFolder(job.folder, job.tree, job.yaml, job.identity).finish(state, error=reason)
        except (RecordError, EnvironmentFault) as error:
            reason = f"{reason}; {error}"
        return JobResult(state, reason, reason)

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

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """End the worker."""
        if self._pipe is not None:
            self._pipe.close()
            self._words.close()
            self._pipe = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class JobRunner(Protocol):
    """Who trains jobs: a supervised worker, or this very process among those of torchrun."""

    callback: Callback

    def agreed(self) -> AbstractContextManager[None]: ...
    def preflight(self, trees: Sequence[Mapping[str, Any]]) -> list[str]: ...
    def run(self, job: Job) -> JobResult: ...


here: JobRunner | None = None  # of this process; a launcher's own process makes one with its first job


@dataclass(frozen=True)
class Task:
    """What a launcher carries to its processes and calls there, once for each job.

    There it never raises: a launcher would end the whole sweep for it, or start the job again.
    """

    policy: RetryPolicy
    folder: Path  # of the sweep, absolute as those of its jobs
    place: Path  # where the command line was given
    jobs: Mapping[str, Job]  # by folder name; a search chooses others while it goes on
    above: ParentProcess | None  # what gave them out, if the launcher's processes are to end with it
    turns: tuple[Path, int] | None = None  # where the launcher itself sets no limit: a folder, and jobs at once
    shared: Sequence[str] = ()  # overrides that do not tell the jobs of a search apart

    def __call__(self, cfg: DictConfig) -> float | str:
        """Do the job that Hydra hands over."""
        global here
        handed = current_job()
        job = self.jobs.get(handed.subdir)
        if job is None:
            tree, label = compose.plain(cfg), " ".join(line for line in handed.overrides if line not in self.shared)
            job = Job(self.folder / handed.subdir, tree, compose.as_yaml(tree), handed.number, label)
        if here is None:
            if self.above is not None:
                self.above.show_gpus()
            here = Supervisor(self.policy, self.place, self.above)
        try:
            with self._turn():
                return self.do(job, here).returned
        except (KeyboardInterrupt, Terminated):
            if self.above is not None and self.above.here:
                raise
            return INTERRUPTED

    def _unwanted(self) -> bool:
        return self.above is not None and self.above.wants_none()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for one of so many places; whoever has one holds a lock, which ends with it."""
        lock = None
        while self.turns is not None and lock is None and not self._unwanted():
            for place in range(self.turns[1]):
                with contextlib.suppress(RecordError):
                    lock = hold(self.turns[0] / str(place))
                    break
            else:
                time.sleep(LOOK_SECONDS)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def do(self, job: Job, job_runner: JobRunner) -> JobResult:
        """Do a job unless another one failed and `fail_fast` holds, or none is wanted any more."""
        mark = self.folder / FAILED_FAST
        if self.policy.fail_fast and mark.exists():
            return JobResult("interrupted", "not started: another job failed (--fail-fast)")
        if self._unwanted():
            return JobResult("interrupted", "not started: the sweep was stopped")
        ending = job_runner.run(job)
        if self.policy.fail_fast and ending.state != "done":
            with contextlib.suppress(OSError):
                mark.touch()
        return ending
