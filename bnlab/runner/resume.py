"""`bnlab resume`: do what is not final; a run that is done is recognized by its identity and left alone."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnlab import __version__
from bnlab.config import compose
from bnlab.errors import BusyError, ConfigError, EnvironmentFault, RecordError
from bnlab.record import origin
from bnlab.record.decision_plan import DecisionPlan
from bnlab.record.read import Run, flatten, read_runs
from bnlab.record.run_folder import FINAL, held, queue, read_status
from bnlab.record.sweep_record import SweepRecord
from bnlab.report.console import messages
from bnlab.report.listing import show_jobs
from bnlab.runner import launchers
from bnlab.runner.supervisor import JobOptions, JobRunner
from bnlab.runner.sweep import (
    Plan,
    carry_out,
    known_as,
    labels,
    number_of_seeds,
    refuse_launcher,
    runner_for,
    threads_of,
)
from bnlab.runner.until_decided import Rounds
from bnlab.training.job import Job

MOVABLE = ("data.root", "data.path", "name")  # what may be another when a run is resumed


@dataclass(frozen=True)
class _Entry:
    """A job of what is resumed, and in which state it is."""

    folder: Path
    tree: Mapping[str, Any]
    identity: str
    label: str
    state: str  # "new" without a folder

    def is_left(self, errored: bool) -> bool:
        return self.state in ("failed", "killed") if errored else self.state not in FINAL


def resume(
    folder: Path,
    overrides: Sequence[str],
    options: JobOptions,
    *,
    config_dir: Path | None = None,
    errored: bool = False,
    dry_run: bool = False,
    known: Sequence[str] = (),
) -> int:
    """Finish what lies in `folder`; print a line a run on stdout; return the exit code.

    `overrides` take the place of a sweep's own of the same key, so `seed=0,1,2,3` adds a seed; of a run they may only
    say where its data lie. `errored`: only jobs that failed. `known`: overrides that the user gave when it was made.
    What a folder of others names outside of itself is refused, unless one of these says the same.
    Errors: ConfigError, EnvironmentFault, RecordError; then nothing was touched.
    """
    if not folder.is_dir() or folder.is_symlink():
        raise ConfigError(f"{folder}: is not a folder\ngive the folder of a run or of a sweep")
    record = SweepRecord.read(folder)
    with runner_for(options) as runner, ExitStack() as until_the_end:
        launcher, fault = "basic", None
        if record is not None:
            try:
                until_the_end.enter_context(held(folder))
            except BusyError:
                raise
            except EnvironmentFault as error:  # of another user: what is done can be shown all the same
                fault = error
        if record is None:
            entries = _run(folder, overrides, known, runner)
        else:
            launcher = _launcher(record, overrides, config_dir, runner)
            entries = _sweep(folder, record, overrides, known, config_dir, runner)
        left = {number: entry for number, entry in enumerate(entries) if entry.is_left(errored)}
        jobs = [Job(entry.folder, number, entry.label, options.from_scratch) for number, entry in left.items()]
        if not jobs:
            what = "no job failed or was killed" if errored else "nothing is left to do"
            messages().say(f"{folder}: {what}")
        if fault is not None and jobs and not dry_run:
            raise fault
        if dry_run:
            if jobs:
                show_jobs(jobs, [entry.state for entry in left.values()])
            return 0
        rounds = None
        if record is not None and not record.search:
            lines = _merged(record.overrides, overrides)  # what is added now is to be finished by the next resume
            place = (config_dir and config_dir.resolve()) or record.config_dir
            begun = [entry.tree for entry in entries if entry.state != "new"]
            record = record if record.seeds else record.with_seeds(number_of_seeds(begun))
            record = replace(record, overrides=tuple(lines), config_dir=place)
            record = record.with_seeds(number_of_seeds(entry.tree for entry in entries))
            if jobs:
                record.write(folder)
            if jobs and (looked := about_looks(folder, record, number_of_seeds(begun), errored)):
                messages().say(looked)
            if not errored and (decision := DecisionPlan.read(folder)) is not None:
                numbered = [(Job(e.folder, i, e.label, options.from_scratch), e.tree) for i, e in enumerate(entries)]
                rounds = Rounds(folder, decision, decision.looks_with(record), numbered)
        for entry in entries:
            if entry.state == "new" or entry.is_left(errored):
                queue(entry.folder, entry.tree, compose.as_yaml(entry.tree), entry.identity, entry.label)
        threads = threads_of([entry.tree for entry in left.values()])
        own = tuple(compose.hydra_lines(overrides))
        plan = Plan(
            folder, tuple(jobs), record is not None, threads, tuple(overrides), own, config_dir, launcher, rounds=rounds
        )
        return carry_out(plan, runner, options)


def about_looks(folder: Path, record: SweepRecord, seeds: int, errored: bool) -> str | None:
    """Return what resuming is to the plan of a sweep, or that more than its `seeds` are a further look."""
    if record.plan is not None and errored:
        return "its plan is left aside: all jobs that failed are done, also those of arms that are decided"
    decision = None if record.plan is None else DecisionPlan.read(folder)
    looks = record.seeds if decision is None else decision.looks_with(record)
    named = ", ".join(map(str, looks))
    if decision is None:
        is_further = 0 < seeds < looks[-1]
        return (
            f"{looks[-1]} seeds an arm after {seeds}: a further look, for which p is corrected" if is_further else None
        )
    what = f"goes on with its plan: {decision.metric}, looks at {named} seeds"
    is_late = len(looks) > len(decision.looks)
    return f"{what}; seeds after its last look make the comparison exploratory" if is_late else what


def _run(folder: Path, overrides: Sequence[str], known: Sequence[str], runner: JobRunner) -> list[_Entry]:
    """Return the only job of a single run."""
    status = read_status(folder)
    if status is None:
        raise ConfigError(f"{folder}: holds neither a run nor a sweep\ngive the folder of a run or of a sweep")
    runs, _ = read_runs([folder])  # where a summary tells that it is over, whatever the status says
    state = runs[0].state if runs else str(status.get("state"))
    return [_recorded(folder, state, overrides, known, runner)]


def _recorded(folder: Path, state: str, overrides: Sequence[str], known: Sequence[str], runner: JobRunner) -> _Entry:
    """Return the job that a run's record tells of. Errors: ConfigError, RecordError."""
    status = read_status(folder) or {}
    config = status.get("config")
    if not isinstance(config, dict):
        raise RecordError(f"{folder / 'status.json'}: has no configuration")
    tree = compose.adjusted(config, overrides, MOVABLE) if overrides else config
    if state not in FINAL:
        origin.check_places(folder, tree, status.get("origin"), [*overrides, *known])
    identity = "" if state in FINAL else runner.preflight([tree])[0]
    return _Entry(folder, tree, identity, known_as(tree) if identity else "", state)


def _launcher(record: SweepRecord, overrides: Sequence[str], config_dir: Path | None, runner: JobRunner) -> str:
    """Return the launcher to resume a sweep with.

    It can start programs, so it is taken from this command line only, never from what lies in a folder.
    """
    launcher, sweeper = launchers.machinery(compose.hydra_lines(overrides), config_dir)
    refuse_launcher(launcher, runner)
    if sweeper != "basic":
        raise ConfigError("a search cannot be resumed here\ngive `bnlab train` the storage of its study")
    if record.search and (given := _merged((), overrides)):
        raise ConfigError(f"{given[0]}: a search has no jobs to add\nstart a new one")
    return launcher


def _sweep(
    folder: Path,
    record: SweepRecord,
    overrides: Sequence[str],
    known: Sequence[str],
    config_dir: Path | None,
    runner: JobRunner,
) -> list[_Entry]:
    """Return the jobs of a sweep: those that its overrides come to, then all others that are not final."""
    runs, skipped = read_runs([folder])
    for path, reason in skipped:
        raise RecordError(f"{path}: {reason}\nmove it away, then its job is done anew")
    for run in runs:
        if run.folder.parent != folder:
            raise RecordError(f"{run.folder}: lies deeper than the jobs of a sweep\nmove it away")
        if run.state == "running":
            raise BusyError(f"{run.folder} is in use by another process\nwait for it, or stop it")
        if (version := run.environment.get("bnlab", __version__)) != __version__:
            raise RecordError(f"{run.folder} is of bnlab {version}, this is {__version__}\nstart a new sweep")
    entries = []
    if not record.search:
        lines = _merged(record.overrides, overrides)
        if record.config_dir is not None and config_dir is None and not record.is_ours:
            raise RecordError(
                f"{folder} names configurations in {record.config_dir}, and is no record of yours on this machine\n"
                "give --config-dir FOLDER if you know what lies there"
            )
        planned_jobs = compose.planned(lines, True, config_dir or record.config_dir)
        if not record.is_ours:
            for _, tree in planned_jobs:
                origin.check_places(folder, tree, None, [*overrides, *known])
        entries = _planned(folder, runs, planned_jobs, runner)
    planned = {entry.folder for entry in entries}
    for run in runs:  # of a search, or of an earlier resume with other overrides
        if run.folder not in planned and run.state not in FINAL:
            entries.append(_recorded(run.folder, run.state, (), [*overrides, *known], runner))
    return entries


def _planned(
    folder: Path, runs: Sequence[Run], planned: Sequence[tuple[list[str], dict[str, Any]]], runner: JobRunner
) -> list[_Entry]:
    """Return the jobs that a sweep's overrides come to; one without a run gets a number of its own."""
    identities = runner.preflight([tree for _, tree in planned])
    begun = defaultdict[str, list[Run]](list)
    for run in runs:
        begun[run.identity].append(run)
    taken = {run.folder.name for run in runs}
    _check_data([run for identity in begun.keys() - set(identities) for run in begun[identity]], planned, runner)
    entries = []
    for i, ((_, tree), label, identity) in enumerate(zip(planned, labels(planned), identities, strict=True)):
        if begun[identity]:
            run = begun[identity].pop(0)
            entries.append(_Entry(run.folder, tree, identity, label, run.state))
            continue
        name = next(n for n in map(str, itertools.chain([i], itertools.count())) if n not in taken)
        taken.add(name)
        entries.append(_Entry(folder / name, tree, identity, label, "new"))
    return entries


def _check_data(runs: Sequence[Run], planned: Sequence[tuple[list[str], dict[str, Any]]], runner: JobRunner) -> None:
    """Refuse a sweep of which a run was on other data than those that its settings come to now. Errors: RecordError."""
    data_now = {_data_key(flatten(tree)): tree["data"] for _, tree in planned}
    for run in {_data_key(run.config): run for run in runs if _data_key(run.config) in data_now}.values():
        then = (read_status(run.folder) or {}).get("config")
        if isinstance(then, dict):
            (identity,) = runner.preflight([then | {"data": data_now[_data_key(run.config)]}])
            if identity != run.identity:
                raise RecordError(f"{run.folder} is of other data\nput the data back, or start a new sweep")


def _data_key(config: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the settings of the data, of a flat configuration, but for where they lie."""
    return tuple(sorted((k, v) for k, v in config.items() if k.startswith("data.") and k not in MOVABLE))


def _merged(recorded: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return a sweep's overrides with those of this command line in their place; Hydra's own are not taken over."""
    new = {_key(line) for line in given}
    kept = [line for line in recorded if _key(line) not in new and line not in compose.hydra_lines([line])]
    if drawn := next((line for line in kept if "${" in line), None):  # it could read this machine, or grow without end
        raise RecordError(f"{drawn}: an interpolation is not taken from a folder\ngive {_key(drawn)}=... here again")
    return [*kept, *(line for line in given if line not in compose.hydra_lines([line]))]


def _key(line: str) -> str:
    return line.partition("=")[0].strip().lstrip("+~")
