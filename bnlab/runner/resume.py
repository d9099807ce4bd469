"""`bnlab resume`: finish a run or a sweep; what is done is recognized by its identity and left alone."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnlab import __version__
from bnlab.config import compose
from bnlab.errors import ConfigError, RecordError
from bnlab.record.read import Run, flatten, read_runs
from bnlab.record.run_folder import FINAL, read_status
from bnlab.record.sweep_record import SweepRecord
from bnlab.report.console import messages
from bnlab.report.listing import show_jobs
from bnlab.runner import launchers
from bnlab.runner.supervisor import RetryPolicy, Supervisor
from bnlab.runner.sweep import Plan, carry_out, held, job_of, known_as, labels
from bnlab.training.job import Job

MOVABLE = ("data.root", "data.path", "name")  # what may be another when a run is gone on with


def resume(
    folder: Path,
    overrides: Sequence[str],
    policy: RetryPolicy,
    *,
    config_dir: Path | None = None,
    errored: bool = False,
    from_scratch: bool = False,
    dry_run: bool = False,
) -> int:
    """Finish what lies in `folder`; print a line a run on stdout; return the exit code.

    `overrides` take the place of a sweep's own of the same key, so `seed=0,1,2,3` adds a seed; of a run they may only
    say where its data lie. `errored`: only jobs that failed. `from_scratch`: leave the checkpoints of unfinished jobs.
    Errors: ConfigError, EnvironmentFault, RecordError; then nothing was touched.
    """
    if not folder.is_dir() or folder.is_symlink():
        raise ConfigError(f"{folder}: is not a folder\ngive the folder of a run or of a sweep")
    record = SweepRecord.read(folder)
    with Supervisor(policy) as job_runner:
        if record is None:
            plan, states = _run(folder, overrides, job_runner), [""]
            return _finish(plan, states, job_runner, policy, from_scratch=from_scratch, dry_run=dry_run)
        with held(folder):
            plan, states = _sweep(folder, record, overrides, config_dir, job_runner, errored)
            if not dry_run and not record.search:
                lines = _merged(record.overrides, overrides)  # what is added now is to be finished by the next resume
                SweepRecord(
                    tuple(lines), (config_dir and config_dir.resolve()) or record.config_dir, search=False
                ).write(folder)
            none = "no job failed or was killed" if errored else "nothing is left to do"
            return _finish(plan, states, job_runner, policy, none, from_scratch=from_scratch, dry_run=dry_run)


def _finish(
    plan: Plan,
    states: Sequence[str],
    job_runner: Supervisor,
    policy: RetryPolicy,
    none: str = "",
    *,
    from_scratch: bool,
    dry_run: bool,
) -> int:
    """Have the jobs of a plan done, or with `dry_run` show them; `none` is said where there are none."""
    jobs = tuple(replace(job, from_scratch=from_scratch) for job in plan.jobs)
    if not jobs:
        messages().say(f"{plan.folder}: {none}")
    if dry_run:
        if jobs:
            show_jobs(jobs, states)
        return 0
    return carry_out(replace(plan, jobs=jobs), job_runner, policy)


def _run(folder: Path, overrides: Sequence[str], job_runner: Supervisor) -> Plan:
    """Return the plan of a single run, from its own record."""
    if read_status(folder) is None:
        raise ConfigError(f"{folder}: holds neither a run nor a sweep\ngive the folder of a run or of a sweep")
    job_runner.start()  # it loads torch meanwhile
    return Plan(folder, (_recorded(folder, overrides, 0, job_runner),), 1, multirun=False)


def _recorded(folder: Path, overrides: Sequence[str], index: int, job_runner: Supervisor) -> Job:
    """Return the job that a run's record tells of. Errors: ConfigError, RecordError."""
    config = (read_status(folder) or {}).get("config")
    if not isinstance(config, dict):
        raise RecordError(f"{folder / 'status.json'}: has no configuration")
    tree = compose.adjusted(config, overrides, MOVABLE) if overrides else config
    (identity,) = job_runner.preflight([tree])
    return job_of(folder, tree, known_as(tree), index, identity)


def _sweep(
    folder: Path,
    record: SweepRecord,
    overrides: Sequence[str],
    config_dir: Path | None,
    job_runner: Supervisor,
    errored: bool,
) -> tuple[Plan, list[str]]:
    """Return the plan of what is left of a sweep, and in which state each of its jobs is."""
    runs, skipped = read_runs([folder])
    for path, reason in skipped:
        raise RecordError(f"{path}: {reason}\nmove it away, then its job is done anew")
    for run in runs:
        if run.folder.parent != folder:
            raise RecordError(f"{run.folder}: lies deeper than the jobs of a sweep\nmove it away")
        if run.state == "running":
            raise RecordError(f"{run.folder} is in use by another process\nwait for it, or stop it")
        if (version := run.environment.get("bnlab", __version__)) != __version__:
            raise RecordError(f"{run.folder} is of bnlab {version}, this is {__version__}\nstart a new sweep")
    # A launcher can start programs, so it is taken from this command line only, never from what lies in a folder.
    launcher, sweeper = launchers.machinery(overrides, config_dir)
    if sweeper != "basic":
        raise ConfigError("a search cannot be gone on with here\ngive `bnlab train` the storage of its study")
    job_runner.start()  # it loads torch meanwhile
    if record.search and (given := _merged((), overrides)):
        raise ConfigError(f"{given[0]}: a search has no jobs to add\nstart a new one")
    pairs: list[tuple[Job, Run | None]] = []
    if not record.search:
        pairs = _paired(folder, runs, _merged(record.overrides, overrides), config_dir or record.config_dir, job_runner)
    planned = {run.folder for _, run in pairs if run is not None}
    for run in runs:  # of a search, or of an earlier resume with other overrides
        if run.folder not in planned and run.state not in FINAL:
            pairs.append((_recorded(run.folder, (), len(pairs), job_runner), run))
    left = [(job, run) for job, run in pairs if _is_left(run, errored)]
    expected = len(runs) + sum(run is None for _, run in pairs)
    plan = Plan(folder, tuple(job for job, _ in left), expected, True, tuple(overrides), config_dir, launcher)
    return plan, ["new" if run is None else run.state for _, run in left]


def _paired(
    folder: Path, runs: Sequence[Run], lines: Sequence[str], config_dir: Path | None, job_runner: Supervisor
) -> list[tuple[Job, Run | None]]:
    """Return the jobs that a sweep comes to, each with its run if it was begun; a new one gets a number of its own."""
    planned = compose.planned(lines, True, config_dir)
    identities = job_runner.preflight([tree for _, tree in planned])
    begun = defaultdict[str, list[Run]](list)
    for run in runs:
        begun[run.identity].append(run)
    taken = {run.folder.name for run in runs}
    unclaimed = [run for run in runs if run.identity not in set(identities)]
    pairs: list[tuple[Job, Run | None]] = []
    for i, ((_, tree), label, identity) in enumerate(zip(planned, labels(planned), identities, strict=True)):
        found = begun[identity].pop(0) if begun[identity] else None
        if found is None and (other := next((run for run in unclaimed if _alike(run, tree)), None)):
            raise RecordError(f"{other.folder} is of other data\nput the data back, or start a new sweep")
        name = next(n for n in map(str, itertools.chain([i], itertools.count())) if n not in taken)
        if found is None:
            taken.add(name)
        place = folder / name if found is None else found.folder
        pairs.append((job_of(place, tree, label, i, identity), found))
    return pairs


def _alike(run: Run, tree: Mapping[str, Any]) -> bool:
    """Return whether a run has these settings: with another identity, its data are not what they were."""
    now, then = ({k: v for k, v in flat.items() if k not in MOVABLE} for flat in (flatten(tree), run.config))
    return now == then


def _merged(recorded: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return a sweep's overrides with those of this command line in their place; Hydra's own are not taken over."""
    new = {_key(line) for line in given}
    kept = [line for line in recorded if _key(line) not in new and line not in launchers.hydra_lines([line])]
    if drawn := next((line for line in kept if "${" in line), None):  # it could read this machine, or grow without end
        raise RecordError(f"{drawn}: an interpolation is not taken from a folder\ngive {_key(drawn)}=... here again")
    return [*kept, *(line for line in given if line not in launchers.hydra_lines([line]))]


def _key(line: str) -> str:
    return line.partition("=")[0].strip().lstrip("+~")


def _is_left(run: Run | None, errored: bool) -> bool:
    if run is None:
        return not errored
    return run.state in ("failed", "killed") if errored else run.state not in FINAL
