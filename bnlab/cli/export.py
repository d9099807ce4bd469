"""`bnlab export`: runs for other programs."""

from __future__ import annotations

import enum
import signal
from pathlib import Path
from typing import Annotated, Optional

import typer


class Form(enum.StrEnum):
    csv = "csv"
    parquet = "parquet"
    tensorboard = "tensorboard"
    mlflow = "mlflow"


def export(
    form: Annotated[Form, typer.Argument(metavar="csv|parquet|tensorboard|mlflow", help="What to write.")],
    paths: Annotated[Optional[list[Path]], typer.Argument(help="Run or sweep folders; default: runs")] = None,
    out: Annotated[
        Optional[Path], typer.Option("--out", help="The folder to write, a new one; default: export/FORMAT")
    ] = None,
    where: Annotated[Optional[list[str]], typer.Option("--where", help="Only runs with KEY=VALUE[,VALUE].")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when a run folder cannot be read.")] = False,
) -> None:
    """Write runs for other programs: configuration, metrics, and what was recorded step by step.

    csv and parquet: runs, steps, evals, layers and times, each one table over all runs. tensorboard: event files, a
    folder a run. mlflow: a local store, mlflow.db, to which later exports add. Accuracies are fractions throughout.
    All but csv need `pip install 'bnlab[export]'`.
    """
    from bnlab.export.export import export as export_runs
    from bnlab.training.job import terminated

    signal.signal(signal.SIGTERM, terminated)
    complete = export_runs(form.value, paths or [Path("runs")], out, where or [])
    if strict and not complete:
        raise typer.Exit(1)
