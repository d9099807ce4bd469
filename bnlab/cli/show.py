"""`bnlab show`: one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bnlab.cli.options import run_argument


def show(run: Annotated[Path, run_argument("RUN")]) -> None:
    """Show the run in the folder RUN: what it was, where it ran, how it went, curves as a chart."""
    from bnlab.record.read import read_documents
    from bnlab.report.console import results
    from bnlab.report.run_report import run_page

    status, summary = read_documents(run)
    out = results()
    out.print(run_page(summary, status, run, out))
