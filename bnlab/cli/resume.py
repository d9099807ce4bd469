"""`bnlab resume`: finish a run or a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnlab.cli.options import ConfigDir, DryRun, FailFast, Inline, Overrides, Retries, Timeout, run_argument
from bnlab.cli.train import handle_signals


def resume(
    folder: Annotated[Path, run_argument("FOLDER")],
    overrides: Overrides = None,
    errored: Annotated[bool, typer.Option("--errored", help="Only jobs that failed or were killed.")] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Begin unfinished jobs anew, without their checkpoints.")
    ] = False,
    config_dir: ConfigDir = None,
    timeout: Timeout = None,
    retries: Retries = 0,
    fail_fast: FailFast = False,
    inline: Inline = False,
    dry_run: DryRun = False,
) -> None:
    """Finish the run or the sweep in FOLDER: what is done is skipped, the rest continues from its checkpoints.

    A run that was interrupted ends with the same tables and weights, bit for bit on a CPU, as one that never was.
    KEY=VALUE takes the place of a sweep's own override: seed=0,1,2,3 adds a seed. A launcher is given anew.
    """
    from bnlab.runner import resume as resuming
    from bnlab.runner.supervisor import JobOptions

    handle_signals()
    code = resuming.resume(
        folder,
        overrides or [],
        JobOptions(timeout, retries, fail_fast, inline, from_scratch),
        config_dir=config_dir,
        errored=errored,
        dry_run=dry_run,
    )
    raise typer.Exit(code)
