"""Commands about runs: train them, compare them, show one."""

from __future__ import annotations

import enum
import os
import signal
from pathlib import Path
from typing import Annotated, Optional

import typer

from bnlab.cli.options import Format, complete_override
from bnlab.errors import ConfigError
from bnlab.training.job import Terminated, terminated


class CfgPart(enum.StrEnum):
    job = "job"
    hydra = "hydra"
    all = "all"


class InfoPart(enum.StrEnum):
    all = "all"
    config = "config"
    defaults = "defaults"
    defaults_tree = "defaults-tree"
    plugins = "plugins"
    searchpath = "searchpath"


Timeout = Annotated[Optional[float], typer.Option("--timeout", help="Seconds for one job; then it is ended.", min=0.1)]
ConfigDir = Annotated[
    Optional[Path],
    typer.Option("--config-dir", exists=True, file_okay=False, help="A folder of further configurations."),
]
Retries = Annotated[int, typer.Option("--retries", help="Further attempts of a job that failed or died.", min=0)]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Start no job after one that was not done.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and list the jobs, run nothing.")]


def train(
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Hydra overrides, such as norm=ghost norm.size=16 data=mnist seed=0,1,2",
            autocompletion=complete_override,
        ),
    ] = None,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="One run for each combination of a,b lists.")
    ] = False,
    cfg: Annotated[Optional[CfgPart], typer.Option("--cfg", "-c", help="Print the configuration, run nothing.")] = None,
    resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve interpolations.")] = False,
    package: Annotated[Optional[str], typer.Option("--package", "-p", help="With --cfg: only this part.")] = None,
    info: Annotated[
        Optional[InfoPart], typer.Option("--info", "-i", help="Print what Hydra knows, run nothing.")
    ] = None,
    config_dir: ConfigDir = None,
    timeout: Timeout = None,
    retries: Retries = 0,
    fail_fast: FailFast = False,
    dry_run: DryRun = False,
) -> None:
    """Train one model, or with -m a whole sweep; one line a run on stdout: folder, status, headline figures.

    `bnlab list` names every option, `bnlab train --cfg job` prints every key with its value.
    """
    from bnlab.config import compose

    lines = list(overrides or [])
    if cfg is not None:
        return compose.show_config(lines, cfg.value, resolve, package, config_dir)
    if resolve or package:
        raise ConfigError("--resolve and --package go with --cfg")
    if info is not None:
        return compose.show_info(lines, info.value, config_dir)
    from bnlab.runner import launchers, slurm
    from bnlab.runner.resume import resume as go_on
    from bnlab.runner.supervisor import RetryPolicy
    from bnlab.runner.sweep import RUNS, launch

    _hear_signals()
    policy = RetryPolicy(timeout, retries, fail_fast)
    try:
        if (folder := slurm.earlier(RUNS, lines)) is not None:
            # the jobs that a search began are finished, by the launcher of this same command line
            own = [line for line in launchers.hydra_lines(lines) if "hydra.sweeper" not in line.replace("/", ".")]
            code = go_on(folder, own if multirun else (), policy, config_dir=config_dir, dry_run=dry_run)
        else:
            code = launch(lines, multirun, config_dir, policy, dry_run)
    except Terminated as stop:  # before the first job
        code = int(stop.code or 1)
    if code == 128 + signal.SIGUSR2:
        slurm.requeue()
    raise typer.Exit(code)


def _hear_signals() -> None:
    """Let SIGTERM, and under Slurm SIGUSR2 before its time is over, end jobs with a checkpoint."""
    signal.signal(signal.SIGTERM, terminated)
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR2, terminated)


def resume(
    folder: Annotated[Path, typer.Argument(help="The folder of a run or of a sweep.")],
    overrides: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="In place of a sweep's own: seed=0,1,2,3 adds a seed. A launcher is given anew.",
            autocompletion=complete_override,
        ),
    ] = None,
    errored: Annotated[bool, typer.Option("--errored", help="Only jobs that failed or were killed.")] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Begin unfinished jobs anew, without their checkpoints.")
    ] = False,
    config_dir: ConfigDir = None,
    timeout: Timeout = None,
    retries: Retries = 0,
    fail_fast: FailFast = False,
    dry_run: DryRun = False,
) -> None:
    """Finish a run or a sweep: what is done is skipped, the rest goes on from its checkpoints.

    A run that was interrupted ends with the same tables and weights, bit for bit on a CPU, as one that never was.
    """
    from bnlab.runner.resume import resume as go_on
    from bnlab.runner.supervisor import RetryPolicy

    _hear_signals()
    policy = RetryPolicy(timeout, retries, fail_fast)
    raise typer.Exit(
        go_on(
            folder,
            overrides or [],
            policy,
            config_dir=config_dir,
            errored=errored,
            from_scratch=from_scratch,
            dry_run=dry_run,
        )
    )


def compare(
    paths: Annotated[Optional[list[Path]], typer.Argument(help="Run or sweep folders; default: runs")] = None,
    by: Annotated[
        Optional[list[str]], typer.Option("--by", help="Keys that make an arm; default: all that differ.")
    ] = None,
    baseline: Annotated[
        Optional[str], typer.Option("--baseline", help="The arm to compare with, such as norm=none.")
    ] = None,
    metric: Annotated[
        Optional[list[str]],
        typer.Option("--metric", help="Metrics to show, the first is compared; see `list metrics`."),
    ] = None,
    where: Annotated[Optional[list[str]], typer.Option("--where", help="Only runs with KEY=VALUE[,VALUE].")] = None,
    sort: Annotated[Optional[str], typer.Option("--sort", help="Metric to sort by, best first.")] = None,
    target: Annotated[
        Optional[float], typer.Option("--target", help="Validation accuracy to reach, such as 0.98.", min=0.0, max=1.0)
    ] = None,
    best_of: Annotated[
        Optional[list[str]],
        typer.Option("--best-of", metavar="KEY", help="Each arm at its best value of KEY, chosen on validation."),
    ] = None,
    pivot: Annotated[
        Optional[str],
        typer.Option("--pivot", metavar="ROWxCOL", help="A matrix, each column's best bold: 'norm x model'."),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.table,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when a run folder cannot be read.")] = False,
) -> None:
    """Compare arms (all runs that differ in the seed only) with intervals, paired by seed against a baseline."""
    from bnlab.compare.comparison import compare as compare_runs
    from bnlab.report.console import messages, results
    from bnlab.report.table import comparison_table, skipped_lines

    found = compare_runs(
        paths or [Path("runs")],
        by=by or (),
        baseline=baseline,
        metrics=metric,
        where=where or (),
        sort=sort,
        target=target,
        best_of=best_of or (),
        pivot=pivot,
    )
    out = results()
    if pivot is not None:
        from bnlab.report.pivot_report import PIVOT_FORMATS, pivot_table

        if format is Format.table:
            out.print(pivot_table(found, width=out.width, unicode=out.unicode))
        else:
            out.emit(PIVOT_FORMATS[format.value](found))
    elif format is Format.table:
        out.print(comparison_table(found, width=out.width, unicode=out.unicode, names=(metric or [])[1:]))
    else:
        from bnlab.report.formats import FORMATS

        out.emit(FORMATS[format.value](found))
    for line in skipped_lines(found):
        messages().say(line)
    if strict and found.skipped:
        raise typer.Exit(1)


def show(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Show one run: what it was, where it ran, how it went, curves as a chart."""
    from bnlab.record.read import read_documents
    from bnlab.report.console import results
    from bnlab.report.run_report import show_run

    status, summary = read_documents(run)
    out = results()
    out.print(show_run(summary, status, run, out.width, unicode=out.unicode, coloured=out.coloured))
