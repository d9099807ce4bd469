"""The table of the jobs that a command line would do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from bnlab.report.console import clean
from bnlab.training.job import Job


def jobs_table(jobs: Sequence[Job], states: Sequence[str]) -> Table:
    """Return a row a job: its number, what tells it from the others, what there is of it already."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("job", "what", *(["folder", "so far"] if any(states) else [])):
        table.add_column(name, overflow="fold", no_wrap=name == "folder")  # a path is there to be copied
    for job, state in zip(jobs, states, strict=True):
        row = [str(job.index), clean(job.label) or "one run", *([clean(job.folder), state] if any(states) else [])]
        table.add_row(*row)
    return table
