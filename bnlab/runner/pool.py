"""The pool: every finished run below `runs` answers whoever needs one like it; what is missing is trained, once.

A run's identity says that an equal one need not be trained, whoever made it. New ones lie in `runs/pool`, each in a
folder named by its identity, so that a command line that was killed goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnlab.config import compose
from bnlab.errors import BnlabError, ConfigError, EnvironmentFault
from bnlab.record.latest import POOL, runs_folder
from bnlab.record.read import Run, evaluated, read_runs
from bnlab.record.run_folder import FINAL, queue
from bnlab.runner import launchers
from bnlab.runner.supervisor import JobOptions, JobRunner
from bnlab.runner.sweep import SUBMITIT, Plan, do_jobs, threads_of
from bnlab.training.job import Job, JobResult


@dataclass(frozen=True)
class Launch:
    """Who trains what is missing, and where."""

    runner: JobRunner
    options: JobOptions
    overrides: tuple[str, ...] = ()  # Hydra's own, such as hydra/launcher=joblib


@dataclass(frozen=True)
class Wanted:
    """A training that is needed."""

    tree: Mapping[str, Any]
    run: Run  # queued, with its identity
    label: str
    base: Wanted | None = None  # the training whose checkpoint gives it, where only settings of evaluation differ


def find_finished() -> dict[str, Run]:
    """Return every finished training below `runs` by its identity, and what its checkpoint was evaluated to be."""
    found: dict[str, Run] = {}
    for run in read_runs([base])[0] if (base := runs_folder()).is_dir() else ():
        if run.state in FINAL and run.identity and not run.is_bench:
            found.setdefault(run.identity, run)
    for run in list(found.values()):
        for each in evaluated(run, alike=True):
            found.setdefault(each.identity, each)
    return found


def has(pool: Mapping[str, Run], wanted: Wanted) -> bool:
    """Return whether what is wanted is there; what is to be trained must have been."""
    run = pool.get(wanted.run.identity)
    return run is not None and (wanted.base is not None or not run.is_evaluated)


def launcher_of(overrides: Sequence[str]) -> str:
    """Return the kind of launcher that these of Hydra's own name. Errors: ConfigError, also for another sweeper."""
    launcher, sweeper = launchers.machinery(overrides)
    if sweeper != "basic":
        raise ConfigError("hydra/sweeper: must be basic\nwhat is trained follows from what is asked")
    return launcher


def train(missing: Sequence[Wanted], pool: dict[str, Run], launch: Launch) -> dict[str, str]:
    """Train what is missing, put it into the pool, and return what failed, by identity.

    Errors: EnvironmentFault where a launcher gave up.
    """
    pool_folder = runs_folder() / POOL
    jobs = [Job(pool_folder / wanted.run.identity, i, wanted.label) for i, wanted in enumerate(missing)]
    for job, wanted in zip(jobs, missing, strict=True):
        queue(job.folder, wanted.tree, compose.as_yaml(wanted.tree), wanted.run.identity, wanted.label)
    ended: dict[Path, JobResult] = {}
    launcher, threads = launcher_of(launch.overrides), threads_of([wanted.tree for wanted in missing])
    plan = Plan(pool_folder, tuple(jobs), True, threads, shared=launch.overrides, launcher=launcher)
    try:
        do_jobs(plan, launch.runner, launch.options, ended)
    except Exception as error:
        if launcher == "basic" or isinstance(error, BnlabError):
            raise
        raise EnvironmentFault(f"the launcher stopped: {str(error).partition(chr(10))[0]}") from error
    failed = {}
    runs = {run.folder: run for run in read_runs(job.folder for job in jobs)[0]}  # together: some may have run at once
    for job, wanted in zip(jobs, missing, strict=True):
        run = runs.get(job.folder)
        if run is not None and run.state in FINAL:
            pool[wanted.run.identity] = run
            continue
        state, reason = (run.state, run.error or "") if run else ("failed", "its folder cannot be read")
        if job.folder in ended:  # also where its folder could not be told
            state, reason = ended[job.folder].state, ended[job.folder].reason
        failed[wanted.run.identity] = f"{job.folder} {state}: {reason.partition(chr(10))[0]}"
    if not failed:
        for left in pool_folder.glob(f"{SUBMITIT}*"):
            shutil.rmtree(left, ignore_errors=True)
    return failed
