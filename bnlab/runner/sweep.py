"""One command line of `bnlab train`: plan its jobs, queue each in its folder, have them done, say what came of them.

A sweep is taken apart here and its jobs given to Hydra's launcher by their names; `basic` does them in turn, in one
warm worker. Read `launch`, then `carry_out`, which `resume` calls too.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bnlab.config import compose
from bnlab.errors import BnlabError, ConfigError, IncompatibleError
from bnlab.record.decision_plan import DecisionPlan
from bnlab.record.latest import runs_folder
from bnlab.record.run_folder import fresh_folder, held, queue
from bnlab.record.sweep_record import QUEUE, SweepRecord, write_queue
from bnlab.report.console import Terminal, messages, results
from bnlab.report.listing import show_jobs
from bnlab.report.progress import PlainProgress, make_progress
from bnlab.report.verdicts import verdict_lines
from bnlab.runner import launchers, monitor, slurm
from bnlab.runner.parent import ParentProcess, asked_to_stop
from bnlab.runner.supervisor import JobOptions, JobRunner, Supervisor
from bnlab.runner.task import FAILED_FAST, Task, choose, do
from bnlab.runner.until_decided import Rounds, Wishes, plan_of
from bnlab.training.job import Job, JobResult, Terminated

SUBMITIT = ".submitit-"  # how the folders begin in which submitit keeps what it writes, one a launch
ELSEWHERE = ("submitit_slurm",)  # launchers whose jobs go on without the command line
BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR")


@dataclass(frozen=True)
class Plan:
    """The jobs of a command line, all checked and queued in their folders."""

    folder: Path
    jobs: tuple[Job, ...]  # to be done now
    multirun: bool
    threads: int | None = None  # the most that any job asks for
    overrides: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()  # those that say which launcher and sweeper, and how
    config_dir: Path | None = None
    launcher: str = "basic"
    sweeper: str = "basic"  # another one chooses jobs while it goes on
    rounds: Rounds | None = None  # of a sweep that stops when it is decided, in place of `jobs`


@dataclass(frozen=True)
class Launched:
    """What came of a command line: its exit code, and the folder of its jobs unless it only showed them."""

    code: int
    folder: Path | None = None


def launch(
    overrides: Sequence[str],
    multirun: bool,
    config_dir: Path | None,
    options: JobOptions,
    dry_run: bool = False,
    wishes: Wishes | None = None,
) -> Launched:
    """Train one run or a sweep; print a line a run on stdout; return the exit code and the folder.

    With `wishes` the sweep stops when it is decided, and says what it found.

    Of several processes that torchrun started the first does so; the others run the same jobs unseen and return the
    same code. Errors: ConfigError or EnvironmentFault when any job could not run: then none was started and no folder
    made.
    """
    if any(name not in os.environ for name in BY_TORCHRUN):
        with runner_for(options) as runner:
            return _launch(runner, overrides, multirun, config_dir, options, dry_run, wishes)
    from bnlab import distributed
    from bnlab.experiment.run import InProcess

    _refuse_limits(options, "torchrun's train them together")
    ranks = distributed.from_environment() or distributed.ALONE
    if wishes is not None and ranks.size > 1:
        raise ConfigError("--until-decided: not under torchrun, whose processes do not see what is decided")
    ranks.connect()
    if ranks.first:
        return _launch(InProcess(ranks), overrides, multirun, config_dir, options, dry_run, wishes)
    with tempfile.TemporaryDirectory(prefix="bnlab-") as folder, open(os.devnull, "w") as nowhere:
        try:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                its = Path(folder)
                code = _launch(InProcess(ranks), overrides, multirun, config_dir, options, dry_run, folder=its).code
        except BnlabError as error:
            code = error.exit_code
    ranks.outlast()
    return Launched(code)


@contextmanager
def runner_for(options: JobOptions) -> Iterator[JobRunner]:
    """Yield who trains jobs for a command line. Errors: ConfigError."""
    if options.inline:
        _refuse_limits(options, "--inline is one")
        from bnlab.experiment.run import InProcess

        yield InProcess()
        return
    with Supervisor(options) as supervisor:
        supervisor.start()  # it loads torch meanwhile
        yield supervisor


def _refuse_limits(options: JobOptions, why: str) -> None:
    if options.timeout is not None or options.retries:
        raise ConfigError(f"--timeout and --retries need jobs in processes of their own; {why}")


def _launch(
    runner: JobRunner,
    overrides: Sequence[str],
    multirun: bool,
    config_dir: Path | None,
    options: JobOptions,
    dry_run: bool,
    wishes: Wishes | None = None,
    folder: Path | None = None,
) -> Launched:
    with ExitStack() as until_the_end:
        with runner.agreed():
            multirun = compose.is_multirun(overrides, multirun, config_dir)
            shared = compose.unswept(overrides, config_dir) if multirun else []
            launcher, sweeper = launchers.machinery(shared, config_dir)
            refuse_launcher(launcher, runner)
            chosen, planned = _fitting(runner, overrides, multirun, config_dir, sweeper)
            trees = [tree for _, tree in planned]
            identities = runner.preflight(trees)
            if again := len(trees) - len(set(identities)):
                repeat = "repeats" if again == 1 else "repeat"
                messages().say(f"{again:,} of {len(trees):,} jobs {repeat} another, seed included: no further seed")
            plan = None if wishes is None else _decision_plan(wishes, trees, sweeper)
            if folder is None and not dry_run:
                name = trees[0].get("name")
                folder = fresh_folder(runs_folder(), "-".join(filter(None, [name, "sweep" if multirun else "run"])))
                slurm.claim(folder, overrides)
            place = folder or runs_folder() / "…"
            jobs = tuple(
                Job(place / str(i) if multirun else place, i, label) for i, label in enumerate(labels(planned))
            )
            if not dry_run and multirun:
                until_the_end.enter_context(held(place))
                record = SweepRecord(tuple(chosen), config_dir and config_dir.resolve(), sweeper != "basic")
                if plan is not None:
                    plan.write(place)
                    record = replace(record, plan=plan.sha256)
                record.with_seeds(number_of_seeds(trees)).write(place)
            if not dry_run and sweeper == "basic":
                for job, tree, identity in zip(jobs, trees, identities, strict=True):
                    queue(job.folder, tree, compose.as_yaml(tree), identity, job.label)
        rounds = None if plan is None else Rounds(place, plan, plan.looks, list(zip(jobs, trees, strict=True)))
        if dry_run:
            if rounds is not None:
                messages().say(rounds.sentence())
            show_jobs(jobs, [""] * len(jobs))
            return Launched(0)
        own, threads = tuple(shared), threads_of(trees)
        whole = Plan(place, jobs, multirun, threads, tuple(chosen), own, config_dir, launcher, sweeper, rounds)
        return Launched(carry_out(whole, runner, options), place)


def _decision_plan(wishes: Wishes, trees: Sequence[Mapping[str, Any]], sweeper: str) -> DecisionPlan:
    """Return the plan of jobs that have no folders yet. Errors: ConfigError."""
    if sweeper != "basic":
        raise ConfigError("--until-decided: not with a search, which compares no arms")
    return plan_of(wishes, [(Job(Path(str(i)), i), tree) for i, tree in enumerate(trees)])


def number_of_seeds(trees: Iterable[Mapping[str, Any]]) -> int:
    """Return how many seeds these configurations have."""
    return len({tree["seed"] for tree in trees})


def refuse_launcher(launcher: str, runner: JobRunner) -> None:
    """Refuse a launcher where jobs run in this very process. Errors: ConfigError."""
    if launcher != "basic" and not isinstance(runner, Supervisor):
        raise ConfigError(
            f"hydra/launcher={launcher}: must be basic for --inline and under torchrun, which run the jobs"
        )


def threads_of(trees: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the most CPU threads that any of these configurations asks for."""
    return max((tree["trainer"].get("threads") or 0 for tree in trees), default=0) or None


def carry_out(plan: Plan, runner: JobRunner, options: JobOptions) -> int:
    """Have the jobs of a plan done, report on all runs of its folder, and return the exit code.

    The folder of a sweep is held by the caller.
    """
    failure: Exception | None = None
    stopped = 0
    ended: dict[Path, JobResult] = {}
    with PlainProgress(Terminal(sys.stderr)) if options.inline else make_progress(sys.stderr) as progress:
        runner.callback = progress
        (plan.folder / FAILED_FAST).unlink(missing_ok=True)
        try:
            for jobs in [plan.jobs] if plan.rounds is None else plan.rounds:
                numbered = tuple(replace(job, index=i) for i, job in enumerate(jobs))  # of those done now
                if plan.rounds is not None:
                    runner.callback.noted(plan.rounds.sentence())
                do_jobs(replace(plan, jobs=numbered), runner, options, ended)
                if (plan.folder / FAILED_FAST).exists():
                    break
        except KeyboardInterrupt:
            stopped = 128 + signal.SIGINT
        except Terminated as stop:
            stopped = stop.code if isinstance(stop.code, int) else 1
        except Exception as error:  # a launcher gave up; what its jobs did is on the disk
            failure = error
    waits = stopped and plan.launcher in ELSEWHERE
    absent = "may still wait in the queue" if waits else "not started"
    trouble = monitor.summarize(plan.folder, plan.multirun, absent, failure, ended)
    if plan.rounds is not None and plan.rounds.compared is not None:
        for line in verdict_lines(plan.rounds.compared):
            results().say(line)
    return stopped or trouble


def do_jobs(plan: Plan, runner: JobRunner, options: JobOptions, ended: dict[Path, JobResult]) -> None:
    """Do the jobs in turn, or let a launcher or a search do so; note in `ended` what came of those done here.

    Errors: whatever a launcher raises.
    """
    if plan.launcher != "basic" or plan.sweeper != "basic":
        _hand_out(plan, runner, options)
        return
    if plan.multirun and plan.jobs:
        runner.callback.sweep_started(len(plan.jobs))
    for job in plan.jobs:
        ended[job.folder] = do(job, runner, plan.folder, options)
        if (plan.folder / FAILED_FAST).exists():
            return  # the others were not started, as their folders say


def _hand_out(plan: Plan, runner: JobRunner, options: JobOptions) -> None:
    if not plan.jobs:
        return
    search, elsewhere = plan.sweeper != "basic", plan.launcher in ELSEWHERE
    parent = ParentProcess(plan.folder.resolve())
    folder = parent.folder
    own = None
    if plan.launcher.startswith("submitit"):  # new, so that nobody can have put a file there
        own = Path(tempfile.mkdtemp(prefix=SUBMITIT, dir=folder))
    chosen = launchers.settings(
        plan.shared, plan.launcher, plan.sweeper, len(plan.jobs), plan.threads, plan.config_dir, own
    )
    runner.callback.sweep_started(chosen.trials or len(plan.jobs))
    if chosen.crowded:
        runner.callback.noted(chosen.crowded)
    names = [job.folder.name for job in plan.jobs]
    if search and plan.launcher == "basic":
        in_turn = partial(choose, runner=runner, folder=folder, options=options, shared=plan.overrides)
        launchers.search(in_turn, chosen, plan.overrides, folder, plan.config_dir)
        return
    task = Task(options, folder, Path.cwd(), None if elsewhere else parent, shared=plan.overrides if search else None)
    if not search and chosen.at_once is not None:
        task = replace(task, queue=folder / QUEUE)
        write_queue(folder / QUEUE, names)
        names = names[: chosen.at_once]
    if isinstance(runner, Supervisor):
        runner.close()  # its worker would only take up memory
    signals: list[int] = []
    with ExitStack() as meanwhile:
        if not elsewhere:  # before any thread, which would be sent the signals instead
            signals = meanwhile.enter_context(asked_to_stop(folder))
        known = () if search else plan.jobs
        meanwhile.enter_context(monitor.watched(folder, known, 1 + options.retries, runner.callback))
        try:
            if search:
                launchers.search(task, chosen, plan.overrides, folder, plan.config_dir)
            else:
                launchers.distribute(task, chosen, folder, names, plan.config_dir)
        except Exception:
            if not signals:  # which may have ended processes of the launcher, too
                raise
        finally:
            (folder / QUEUE).unlink(missing_ok=True)
    if signals:
        raise KeyboardInterrupt if signals[0] == signal.SIGINT else Terminated(128 + signals[0])


def labels(planned: Sequence[tuple[Sequence[str], Any]]) -> list[str]:
    """Return what tells each job from the others: its overrides without those that all have."""
    shared = set.intersection(*(set(lines) for lines, _ in planned)) if planned else set()
    return [" ".join(line for line in lines if line not in shared) or known_as(tree) for lines, tree in planned]


def known_as(tree: Mapping[str, Any]) -> str:
    """Return in a few words what a run is, where it is the only one."""
    return f"norm={tree['norm']['name']} seed={tree['seed']}"


def _fitting(
    runner: JobRunner, overrides: Sequence[str], multirun: bool, config_dir: Path | None, sweeper: str
) -> tuple[Sequence[str], list[tuple[list[str], dict[str, Any]]]]:
    """Return the overrides and the jobs they stand for, without the strategies of `norm=glob(...)` that do not fit.

    They are named on stderr. A strategy that the command line names itself is left to `preflight`, which refuses it.
    Errors: IncompatibleError when none is left.
    """
    planned = compose.planned(overrides, multirun, config_dir)
    globbed = compose.globbed(overrides, "norm", config_dir) if any("glob(" in line for line in overrides) else None
    if globbed is None:
        return overrides, planned
    place, names = globbed
    if sweeper != "basic":
        raise ConfigError(
            f"{overrides[place]}: not in a search\nwrite norm=choice({','.join(names[:2])}) with all you want"
        )
    misfits: dict[str, IncompatibleError] = {}
    jobs: dict[str, list[tuple[list[str], dict[str, Any]]]] = {name: [] for name in names}
    for lines, tree in planned:
        name = next(line.removeprefix("norm=") for line in lines if line.startswith("norm="))
        jobs[name].append((lines, tree))
    for name, its in jobs.items():
        try:
            runner.preflight([tree for _, tree in its])
        except IncompatibleError as error:
            misfits[name] = error
    for name, misfit in misfits.items():
        reason = str(misfit).partition("\n")[0].removeprefix(f"norm={name}: ")
        messages().say(f"norm={name} is left out: {reason}")
    left = [name for name in names if name not in misfits]
    if not left:
        raise IncompatibleError(f"{overrides[place]}: none of these strategies fits the rest of the configuration")
    kept = [job for name in left for job in jobs[name]]
    of_those_left_out = {line.partition("=")[0] for its in jobs.values() for lines, _ in its for line in lines}
    of_those_left_out -= {line.partition("=")[0] for lines, _ in kept for line in lines}
    chosen = [*overrides[:place], f"norm={','.join(left)}", *overrides[place + 1 :]]
    return [line for line in chosen if line.partition("=")[0] not in of_those_left_out], kept
