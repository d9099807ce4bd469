"""`bnlab train`: one run, or a sweep."""

from __future__ import annotations

import os
import signal
from typing import Annotated, Optional

import typer

from bnlab.cli.options import (
    Baseline,
    ConfigDir,
    DryRun,
    FailFast,
    Inline,
    Margin,
    Overrides,
    Retries,
    Test,
    Timeout,
    complete_metric,
    one_of,
)
from bnlab.errors import ConfigError

CFG_PARTS = ("job", "hydra", "all")
INFO_PARTS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def train(
    overrides: Overrides = None,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="One run for each combination of a,b lists.")
    ] = False,
    cfg: Annotated[
        Optional[str], one_of("--cfg", "-c", choices=CFG_PARTS, help="Print the configuration, run nothing.")
    ] = None,
    resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: resolve interpolations.")] = False,
    package: Annotated[
        Optional[str], typer.Option("--package", "-p", metavar="KEY", help="With --cfg: only this part.")
    ] = None,
    info: Annotated[
        Optional[str], one_of("--info", "-i", choices=INFO_PARTS, help="Print what Hydra knows, run nothing.")
    ] = None,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="With -m: train seeds in looks, stop when each arm is decided.")
    ] = False,
    metric: Annotated[
        Optional[str],
        typer.Option("--metric", metavar="NAME", autocompletion=complete_metric, help="What decides: test_accuracy."),
    ] = None,
    margin: Margin = None,
    baseline: Baseline = None,
    looks: Annotated[
        Optional[str], typer.Option("--looks", metavar="N,N", help="Seeds at which it is looked at: 3,5,8,12,20.")
    ] = None,
    test: Test = None,
    config_dir: ConfigDir = None,
    timeout: Timeout = None,
    retries: Retries = 0,
    fail_fast: FailFast = False,
    inline: Inline = False,
    dry_run: DryRun = False,
) -> None:
    """Train one model, or with -m a whole sweep; one line a run on stdout: folder, status, headline figures.

    KEY=VALUE are Hydra overrides, such as norm=ghost norm.size=16 data=mnist seed=0,1,2. `bnlab list` names every
    option, `bnlab train --cfg job` prints every key with its value.
    """
    from bnlab.config import compose

    lines = list(overrides or [])
    if cfg is not None:
        return compose.show_config(lines, cfg, resolve, package, config_dir)
    if resolve or package:
        raise ConfigError("--resolve and --package go with --cfg")
    if info is not None:
        return compose.show_info(lines, info, config_dir)
    from bnlab.record.latest import runs_folder
    from bnlab.runner import slurm
    from bnlab.runner.resume import resume
    from bnlab.runner.supervisor import JobOptions
    from bnlab.runner.sweep import launch
    from bnlab.runner.until_decided import wishes_of
    from bnlab.training.job import Terminated

    wishes = wishes_of(until_decided, multirun, metric=metric, margin=margin, baseline=baseline, looks=looks, test=test)
    handle_signals()
    options = JobOptions(timeout, retries, fail_fast, inline)
    try:
        if (folder := slurm.earlier(runs_folder(), lines)) is not None:
            # the jobs that a search began are finished, by the launcher of this same command line
            own = [line for line in compose.hydra_lines(lines) if "hydra.sweeper" not in line.replace("/", ".")]
            again = own if (folder / "sweep.json").exists() else ()
            code = resume(folder, again, options, config_dir=config_dir, dry_run=dry_run, known=lines)
        else:
            code = launch(lines, multirun, config_dir, options, dry_run, wishes).code
    except Terminated as stop:  # before the first job
        code = int(stop.code or 1)
    if code == 128 + signal.SIGUSR2:
        slurm.requeue()
    raise typer.Exit(code)


def handle_signals() -> None:
    """Let SIGTERM, and under Slurm SIGUSR2 before its time is over, end jobs with a checkpoint."""
    from bnlab.training.job import terminated

    signal.signal(signal.SIGTERM, terminated)
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR2, terminated)


def stopped(stop: BaseException) -> int:
    """Say how what keeps its runs in the pool goes on after Ctrl-C or SIGTERM, and return the exit code."""
    from bnlab.report.console import messages

    messages().say("stopped; the same command goes on from here")
    return int(getattr(stop, "code", 0) or 128 + signal.SIGINT)
