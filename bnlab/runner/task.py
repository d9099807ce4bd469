"""What Hydra's launchers carry to their processes and call there: names only, the jobs lie in their folders.

A launcher of this machine starts as many processes as there are places, and each takes jobs from one queue until none
is left; a cluster's is given each job by its name, the `hydra.sweep.subdir`. A search hands over configurations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bnlab.config import compose
from bnlab.errors import BnlabError, RecordError
from bnlab.record.run_folder import queue, read_status
from bnlab.record.sweep_record import take_name
from bnlab.runner.launchers import current_job
from bnlab.runner.monitor import ending, tell_end
from bnlab.runner.parent import ParentProcess
from bnlab.runner.supervisor import JobOptions, JobRunner, Supervisor
from bnlab.training.job import INTERRUPTED, Job, JobResult, Terminated

if TYPE_CHECKING:
    from omegaconf import DictConfig

FAILED_FAST = ".failed-fast"  # lies in a sweep's folder when a job failed and the rest is not to start


def do(job: Job, runner: JobRunner, folder: Path, options: JobOptions) -> JobResult:
    """Do a job of `folder`, unless another one failed and `fail_fast` holds; tell the callback how it ended."""
    mark = folder / FAILED_FAST
    if options.fail_fast and mark.exists():
        return JobResult("interrupted", "not started: another job failed (--fail-fast)")
    try:
        result = runner.run(job)
    except BaseException:
        with contextlib.suppress(RecordError):
            tell_end(job, read_status(job.folder) or {}, runner.callback)
        raise
    runner.callback.job_ended(job.index, result.state, *ending(job.folder, result.state, result.reason))
    if options.fail_fast and result.state not in ("done", "refused"):
        with contextlib.suppress(OSError):
            mark.touch()
    return result


def choose(cfg: DictConfig, runner: JobRunner, folder: Path, options: JobOptions, shared: Sequence[str]) -> float | str:
    """Queue the job that a search has chosen, do it, and return its score, or in words why there is none.

    Of its overrides those that are `shared` do not tell it from the others.
    """
    handed = current_job()
    label = " ".join(line for line in handed.overrides if line not in shared)
    job, tree = Job(folder / handed.subdir, handed.number, label), compose.plain(cfg)
    try:
        (identity,) = runner.preflight([tree])
        queue(job.folder, tree, compose.as_yaml(tree), identity, label)
    except BnlabError as error:
        runner.callback.noted(f"{label}: {error}")
        return str(error)
    return do(job, runner, folder, options).returned


@dataclass(frozen=True)
class Task:
    """Does jobs in a process of a launcher.

    It never raises there: a launcher would end the whole sweep for it, or start the job again.
    """

    options: JobOptions
    folder: Path  # of the sweep, absolute
    place: Path  # where the command line was given
    parent: ParentProcess | None  # the command line, if the launcher's processes are to end with it
    queue: Path | None = None  # of the names of jobs, to be taken by whoever is free
    shared: Sequence[str] | None = None  # of a search: overrides that do not tell its jobs apart

    def __call__(self, cfg: DictConfig) -> float | str:
        runner = _supervisor(self.options, self.place, self.parent)
        returned: float | str = "not started: the sweep was stopped"
        try:
            if self.shared is not None and not self._unwanted():
                return choose(cfg, runner, self.folder, self.options, self.shared)
            for name in self._names():  # none where a search is to end
                job = Job(self.folder / name, from_scratch=self.options.from_scratch)
                returned = do(job, runner, self.folder, self.options).returned
        except (KeyboardInterrupt, Terminated):
            if self.parent is not None and self.parent.here:
                raise
            return INTERRUPTED
        return returned

    def _names(self) -> Iterator[str]:
        """Yield the names of jobs to do here, as long as any is wanted."""
        if self.queue is None and not self._unwanted():
            yield current_job().subdir
        while self.queue is not None and not self._unwanted() and (name := take_name(self.queue)) is not None:
            yield name

    def _unwanted(self) -> bool:
        return self.parent is not None and self.parent.wants_none()


@cache
def _supervisor(options: JobOptions, place: Path, parent: ParentProcess | None) -> Supervisor:
    """Return this process's own, which keeps its worker warm from job to job."""
    if parent is not None:
        parent.show_gpus()
    return Supervisor(options, place, parent)
