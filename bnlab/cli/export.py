"""`bnlab export`: runs for other programs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Optional

import typer

from bnlab.cli.options import Runs, Strict, Where, one_of


def export(
    form: Annotated[str, one_of(choices=("csv", "parquet", "tensorboard", "mlflow"), help="What to write.")],
    paths: Runs = None,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", metavar="FOLDER", help="The folder to write, a new one; default: export/FORMAT"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export that is there.")] = False,
    where: Where = None,
    strict: Strict = False,
) -> None:
    """Write runs for other programs: configuration, metrics, and what was recorded step by step.

    csv and parquet: runs, steps, evals, layers and times, each one table over all runs. tensorboard: event files, a
    folder a run. mlflow: a local store, mlflow.db, to which later exports add. Accuracies are fractions throughout.
    All but csv need `pip install 'bnlab[export]'`. PATH is the folder of a run or of a sweep; default: runs.
    """
    from bnlab.export.export import export as export_runs
    from bnlab.record.latest import runs_folder
    from bnlab.training.job import terminated

    signal.signal(signal.SIGTERM, terminated)
    complete = export_runs(form, paths or [runs_folder()], out, where or [], force)
    if strict and not complete:
        raise typer.Exit(1)
