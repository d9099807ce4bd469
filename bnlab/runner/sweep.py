"""One command line of `bnlab train` or `bnlab resume`: check all its jobs, have them done, say what came of each.

A sweep is taken apart here and its jobs handed to Hydra's launcher one by one; `basic` does them in turn, in one warm
worker. What came of them is read from the disk, the same under every launcher.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnlab.compare.arms import arms_of, short_names, text_of
from bnlab.config import compose
from bnlab.errors import BnlabError, ConfigError, IncompatibleError
from bnlab.metrics import metrics, warnings_of
from bnlab.record.read import Run, read_runs
from bnlab.record.run_folder import fresh_folder, hold
from bnlab.record.sweep_record import SweepRecord
from bnlab.report.console import messages, results
from bnlab.report.listing import show_jobs
from bnlab.report.progress import make_progress
from bnlab.runner import launchers, monitor, slurm, supervisor
from bnlab.runner.parent import ParentProcess
from bnlab.runner.supervisor import FAILED_FAST, JobRunner, RetryPolicy, Supervisor, Task
from bnlab.training.job import Job, Terminated

RUNS = Path("runs")
HEADLINE = ("test_accuracy", "acc_gap", "step_ms", "train_seconds")
ELSEWHERE = ("submitit_slurm",)  # launchers whose jobs go on without the command line
UNLIMITED = ("submitit_local",)  # launchers that start all jobs at once
BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


@dataclass(frozen=True)
class Plan:
    """The jobs of a command line, all checked, and where they go."""

    folder: Path
    jobs: tuple[Job, ...]  # to be done now
    expected: int  # runs in the folder when all is done; those done before included
    multirun: bool
    overrides: tuple[str, ...] = ()
    config_dir: Path | None = None
    launcher: str = "basic"
    sweeper: str = "basic"  # another one chooses jobs while it goes on


def launch(
    overrides: Sequence[str], multirun: bool, config_dir: Path | None, policy: RetryPolicy, dry_run: bool = False
) -> int:
    """Train one run or a sweep; print a line a run on stdout; return the exit code.

    Of several workers that torchrun started the first does so; the others run the same jobs unseen and return the same
    code. Errors: ConfigError or EnvironmentFault when any job could not run: then none was started and no folder made.
    """
    if any(name not in os.environ for name in BY_TORCHRUN):
        with Supervisor(policy) as job_runner:
            job_runner.start()
            return _launch(job_runner, overrides, multirun, config_dir, policy, dry_run)
    from bnlab import distributed
    from bnlab.experiment import run

    if policy.timeout is not None or policy.retries:
        raise ConfigError("--timeout and --retries need jobs in processes of their own; torchrun's train them together")
    run.workers = team = distributed.from_environment() or distributed.ALONE
    team.connect()
    in_process = run.InProcess()
    if team.first:
        return _launch(in_process, overrides, multirun, config_dir, policy, dry_run)
    with tempfile.TemporaryDirectory(prefix="bnlab-") as folder, open(os.devnull, "w") as nowhere:
        try:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                code = _launch(in_process, overrides, multirun, config_dir, policy, dry_run, Path(folder))
        except BnlabError as error:
            code = error.exit_code
    team.outlast()
    return code


def _launch(
    job_runner: JobRunner,
    overrides: Sequence[str],
    multirun: bool,
    config_dir: Path | None,
    policy: RetryPolicy,
    dry_run: bool,
    folder: Path | None = None,
) -> int:
    with job_runner.agreed():
        launcher, sweeper = launchers.machinery(overrides, config_dir) if multirun else ("basic", "basic")
        if launcher != "basic" and not isinstance(job_runner, Supervisor):
            raise ConfigError(
                "trainer.distributed=true: hydra/launcher must be basic, the workers run the jobs themselves"
            )
        given = overrides
        overrides, planned = _fitting(job_runner, overrides, multirun, config_dir)
        identities = job_runner.preflight([tree for _, tree in planned])
        if folder is None and not dry_run:
            name = planned[0][1].get("name")
            folder = fresh_folder(RUNS, "-".join(filter(None, [name, "sweep" if multirun else "run"])))
            slurm.claim(folder, given)
    search = sweeper != "basic"
    place = folder or RUNS / "…"
    jobs = tuple(
        job_of(place / str(i) if multirun else place, tree, labels, i, known)
        for i, ((_, tree), labels, known) in enumerate(zip(planned, labels(planned), identities, strict=True))
    )
    if dry_run:
        show_jobs(jobs, [""] * len(jobs))
        return 0
    # how many jobs a search comes to is known when it is over
    expected = 0 if search else len(jobs)
    plan = Plan(place, jobs, expected, multirun, tuple(overrides), config_dir, launcher, sweeper)
    if not multirun:
        return carry_out(plan, job_runner, policy)
    with held(place):
        SweepRecord(tuple(overrides), config_dir and config_dir.resolve(), search).write(place)
        return carry_out(plan, job_runner, policy)


def carry_out(plan: Plan, job_runner: JobRunner, policy: RetryPolicy) -> int:
    """Have the jobs of a plan done, report on all runs of its folder, and return the exit code.

    The folder of a sweep is held by the caller.
    """
    plan = replace(plan, jobs=tuple(replace(job, index=i) for i, job in enumerate(plan.jobs)))  # of those done now
    failure: Exception | None = None
    stopped = 0
    with make_progress(sys.stderr) as progress:
        job_runner.callback = progress
        (plan.folder / FAILED_FAST).unlink(missing_ok=True)
        try:
            _do(plan, job_runner, policy)
        except KeyboardInterrupt:
            stopped = 128 + signal.SIGINT
        except Terminated as stop:
            stopped = stop.code if isinstance(stop.code, int) else 1
        except Exception as error:  # a launcher gave up; what its jobs did is on the disk
            failure = error
    absent = "was not started" if stopped or policy.fail_fast else "left no record"
    trouble = _report(
        plan, failure, "may still wait for its turn" if stopped and plan.launcher in ELSEWHERE else absent
    )
    return stopped or trouble


def _do(plan: Plan, job_runner: JobRunner, policy: RetryPolicy) -> None:
    """Do the jobs in turn, or let a launcher or a search do so. Errors: whatever a launcher raises."""
    if plan.launcher != "basic" or plan.sweeper != "basic":
        return _hand_out(plan, job_runner, policy)
    if plan.multirun and plan.jobs:
        job_runner.callback.sweep_started(len(plan.jobs))
    task = Task(policy, plan.folder, Path.cwd(), {}, None)
    for job in plan.jobs:
        task.do(job, job_runner)
    return None


def _hand_out(plan: Plan, job_runner: JobRunner, policy: RetryPolicy) -> None:
    if not plan.jobs:
        return
    search, elsewhere = plan.sweeper != "basic", plan.launcher in ELSEWHERE
    above = ParentProcess(plan.folder.resolve())
    threads = max(job.tree["trainer"].get("threads") or 0 for job in plan.jobs) or None
    own = None
    if plan.launcher in (*UNLIMITED, *ELSEWHERE):  # submitit's; new, so that nobody can have put a file there
        own = Path(tempfile.mkdtemp(prefix=".submitit-", dir=above.folder))
    chosen = launchers.settings(
        plan.overrides, plan.launcher, plan.sweeper, len(plan.jobs), threads, plan.config_dir, own
    )
    jobs = () if search else tuple(replace(job, folder=above.folder / job.folder.name) for job in plan.jobs)
    names = {job.folder.name: job for job in jobs}
    turns = (own / "turns", chosen.at_once) if own and plan.launcher in UNLIMITED and chosen.at_once else None
    task = Task(policy, above.folder, Path.cwd(), names, None if elsewhere else above, turns, plan.overrides)
    job_runner.callback.sweep_started(chosen.trials or len(jobs))
    if chosen.crowded:
        job_runner.callback.noted(chosen.crowded)
    signals: list[int] = []
    with ExitStack() as beside:
        if plan.launcher == "basic":
            supervisor.here = job_runner
        else:
            if isinstance(job_runner, Supervisor):
                job_runner.close()  # its worker would only take up memory
            if not elsewhere:  # before any thread, which would be sent the signals instead
                signals = beside.enter_context(monitor.asked_to_stop(above.folder))
            searched = compose.swept_keys(plan.overrides) if search else ()
            beside.enter_context(monitor.told(above.folder, jobs, 1 + policy.retries, job_runner.callback, searched))
        try:
            if search:
                launchers.search(task, chosen, plan.overrides, above.folder, plan.config_dir)
            else:
                launchers.distribute(task, chosen, above.folder, list(names), plan.config_dir)
        except Exception:
            if not signals:  # which may have ended processes of the launcher, too
                raise
    if signals:
        raise KeyboardInterrupt if signals[0] == signal.SIGINT else Terminated(128 + signals[0])


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder of a sweep, so that no other process works on it; a run holds its own."""
    lock = hold(folder)
    try:
        yield
    finally:
        os.close(lock)


def job_of(folder: Path, tree: Mapping[str, Any], label: str, index: int, identity: str) -> Job:
    """Return the job of a configuration."""
    return Job(folder, tree, compose.as_yaml(tree), index, label, identity)


def labels(planned: Sequence[tuple[Sequence[str], Any]]) -> list[str]:
    """Return what tells each job from the others: its overrides without those that all have."""
    shared = set.intersection(*(set(lines) for lines, _ in planned)) if planned else set()
    return [" ".join(line for line in lines if line not in shared) or known_as(tree) for lines, tree in planned]


def known_as(tree: Mapping[str, Any]) -> str:
    """Return in a few words what a run is, where it is the only one."""
    return f"norm={tree['norm']['name']} seed={tree['seed']}"


def _fitting(
    job_runner: JobRunner, overrides: Sequence[str], multirun: bool, config_dir: Path | None
) -> tuple[Sequence[str], list[tuple[list[str], dict[str, Any]]]]:
    """Return the overrides and the jobs they stand for, without the strategies of `norm=glob(...)` that do not fit.

    They are named on stderr. A strategy that the command line names itself is left to `preflight`, which refuses it.
    Errors: IncompatibleError when none is left.
    """
    planned = compose.planned(overrides, multirun, config_dir)
    found = compose.globbed(overrides, "norm", config_dir) if any("glob(" in line for line in overrides) else None
    if found is None:
        return overrides, planned
    place, names = found
    if launchers.machinery(overrides, config_dir)[1] != "basic":
        raise ConfigError(
            f"{overrides[place]}: not in a search\nwrite norm=choice({','.join(names[:2])}) with all you want"
        )
    misfits: dict[str, IncompatibleError] = {}
    jobs: dict[str, list[tuple[list[str], dict[str, Any]]]] = {name: [] for name in names}
    for lines, tree in planned:
        name = next(line.removeprefix("norm=") for line in lines if line.startswith("norm="))
        jobs[name].append((lines, tree))
        try:
            job_runner.preflight([tree])
        except IncompatibleError as error:
            misfits[name] = error
    for name, misfit in misfits.items():
        reason = str(misfit).partition("\n")[0].removeprefix(f"norm={name}: ")
        messages().say(f"norm={name} is left out: {reason}")
    left = [name for name in names if name not in misfits]
    if not left:
        raise IncompatibleError(f"{overrides[place]}: none of these strategies fits the rest of the configuration")
    chosen = [*overrides[:place], f"norm={','.join(left)}", *overrides[place + 1 :]]
    return chosen, [job for name in left for job in jobs[name]]


def _report(plan: Plan, failure: Exception | None, absent: str) -> int:
    """Print a line a run on stdout and what went wrong on stderr; return the exit code.

    `absent` says what is to be thought of a job without a folder.
    """
    folder, multirun = plan.folder, plan.multirun
    runs, skipped = read_runs([folder])
    runs.sort(key=lambda run: (len(run.folder.name), run.folder.name))  # by number, however they were started
    expected = max(plan.expected, len(runs))
    out, err = results(), messages()
    arms, changed = arms_of(runs) if runs else ([], [])
    names = short_names(changed)
    lines = {
        run.folder: _line(run, {names[key]: text_of(arm.values[key]) for key in changed if key in arm.values})
        for arm in arms
        for run in arm.runs
    }
    for run in runs:
        out.say(lines[run.folder])
    doubts = Counter(warning for run in runs if run.summary for warning in warnings_of(run.summary))
    for warning, count in doubts.items():
        err.say(f"warning: {warning}" + (f" ({count} of {len(runs)} runs)" if multirun else ""))
    bad = [run for run in runs if run.state != "done"]
    for run in bad:
        unknown = "goes on without this command line" if run.state == "running" else "no reason recorded"
        err.say(f"{run.folder} {run.state}: {(run.error or unknown).partition(chr(10))[0]}")
    for advice in dict.fromkeys(line for run in bad for line in (run.error or "").splitlines()[1:3]):
        err.say(advice)
    for path, reason in skipped:
        err.say(f"{path}: {reason}")
    missing = expected - len(runs) - len(skipped)
    if missing > 0:
        err.say(f"{missing} of {expected} jobs: {absent}")
    if failure is not None:
        err.say(f"the launcher stopped: {str(failure).partition(chr(10))[0]}")
    if multirun:
        err.say(f"{len(runs) - len(bad)} of {expected} jobs done; bnlab compare {folder}")
    if missing > 0 or any(run.state != "diverged" for run in bad):
        err.say(f"to finish: bnlab resume {folder}")
    return int(bool(bad or skipped or missing > 0 or failure is not None))


def _line(run: Run, arm: Mapping[str, str]) -> str:
    """Return folder, status, what the run was and its headline figures, as `bnlab list metrics` has their units."""
    parts = [str(run.folder), run.state, *(f"{key}={value}" for key, value in arm.items()), f"seed={run.seed}"]
    for name in HEADLINE:
        metric = metrics[name]
        value = metric.derive(run.summary) if run.summary and run.state == "done" else None
        if isinstance(value, float):
            parts.append(f"{name}={value * metric.scale:.4g}")
    return "  ".join(parts)
