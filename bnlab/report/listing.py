"""Plain lists: every option with its line, data sets and what is there of them, what the doctor found, jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group
from rich.text import Text

from bnlab.report.console import results
from bnlab.report.table import Column, draw
from bnlab.training.job import Job

_MARKS = {"ok": ("✓", "green"), "note": ("–", "yellow"), "bad": ("✗", "red")}
_SUBJECT = 19  # columns of what the doctor looks at, whose findings come one by one


def show_options(groups: Mapping[str, Mapping[str, str]]) -> None:
    """Print each group's options, one a line: name and description."""
    out = results()
    width = max(len(name) for options in groups.values() for name in options)
    for number, (group, options) in enumerate(groups.items()):
        names = [f"  {name:<{width}}" for name in options]
        columns = [Column("", names, left=True), Column("", list(options.values()), left=True, wraps=True)]
        out.print(Group(*([Text("")] if number else []), Text(group, "bold"), *draw(columns, out).lines))


def show_rows(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of text; the last column may wrap."""
    out = results()
    columns = [
        Column(title, cells, left=True, wraps=number == len(titles))
        for number, (title, cells) in enumerate(zip(titles, zip(*rows, strict=True), strict=True), 1)
    ]
    out.print(Group(*draw(columns, out).lines))


def show_findings(findings: Iterable[tuple[str, str, str]]) -> None:
    """Print (subject, state, text) a line, as they come."""
    out = results()
    for subject, state, text in findings:
        mark, style = _MARKS[state]
        columns = [
            Column("", [f"{mark} {subject:<{_SUBJECT}}"], left=True, styles=[style]),
            Column("", [text], left=True, wraps=True),
        ]
        out.print(Group(*draw(columns, out).lines))


def show_jobs(jobs: Sequence[Job], states: Sequence[str]) -> None:
    """Print a row a job: its number, what tells it from the others, what there is of it already."""
    out = results()
    columns = [
        Column("job", [str(job.index) for job in jobs]),
        Column("what", [job.label or "one run" for job in jobs], left=True, wraps=True),
    ]
    if any(states):  # a path is there to be copied
        columns.append(Column("folder", [str(job.folder) for job in jobs], left=True))
        columns.append(Column("so far", states, left=True, wraps=True))
    out.print(Group(*draw(columns, out).lines))
