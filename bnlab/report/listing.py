"""Plain lists: every option with its line, data sets and what is there of them, what the doctor found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from bnlab.report.console import results

_MARKS = {"ok": ("✓", "green"), "note": ("–", "yellow"), "bad": ("✗", "red")}


def show_options(groups: Mapping[str, Mapping[str, str]]) -> None:
    """Print each group's options, one a line: name and description."""
    out = results()
    width = max(len(name) for options in groups.values() for name in options)
    for number, (group, options) in enumerate(groups.items()):
        if number:
            out.print()
        out.print(Text(group, "bold"))
        for name, line in options.items():
            table = Table.grid(padding=(0, 2))
            table.add_column(width=width + 2, no_wrap=True)
            table.add_column()
            table.add_row(f"  {name}", out.show(line))
            out.print(table)


def show_rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table without frames; the last column may wrap."""
    out = results()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number < len(headings) - 1)
    for row in rows:
        table.add_row(*(Text(out.show(cell)) for cell in row))
    out.print(table)


def show_findings(findings: Iterable[tuple[str, str, str]]) -> None:
    """Print (subject, state, text) a line, as they come."""
    out = results()
    for subject, state, text in findings:
        mark, style = _MARKS[state]
        row = Table.grid(padding=(0, 1))
        row.add_column(no_wrap=True)
        row.add_column(width=20, no_wrap=True)
        row.add_column()
        row.add_row(Text(out.show(mark), style), out.show(subject), out.show(text))
        out.print(row)
