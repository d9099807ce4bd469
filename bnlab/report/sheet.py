"""One result as a page or a notebook shows it: question, answer, table, pictures. No matplotlib here."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from bnlab.report.console import clean
from bnlab.report.panels import Picture
from bnlab.report.table import Column

Grid = tuple[list[str], list[list[str]]]  # titles, rows


@dataclass(frozen=True)
class Plate:
    """A titled picture, and the tables of what it shows: by default those of its panels."""

    title: str
    picture: Picture
    columns: Sequence[Column] = ()

    def tables(self) -> list[Grid]:
        if self.columns:
            return [grid(self.columns)]
        return [panel.table() for row in self.picture.rows for panel in row]


@dataclass(frozen=True)
class Sheet:
    """What a probe, a shift or a card says."""

    question: str
    answer: Sequence[str]
    heading: Sequence[str]
    columns: Sequence[Column]
    legend: Sequence[str] = ()
    plates: Sequence[Plate] = ()
    notes: Sequence[str] = ()
    machine: str = ""

    def fragment(self) -> str:
        """Return HTML for the cell of a notebook, without pictures."""
        whole = "".join(f"<p><strong>{escaped(sentence)}</strong></p>" for sentence in self.answer)
        whole += f"<p>{escaped(' · '.join(self.heading))}</p>{html_table(grid(self.columns))}"
        for plate in self.plates:
            whole += f"<p>{escaped(plate.title)}</p>{''.join(map(html_table, plate.tables()))}"
        return whole + f"<ul>{''.join(f'<li>{escaped(note)}</li>' for note in self.notes)}</ul>"


def grid(columns: Sequence[Column]) -> Grid:
    """Return titles and rows of text; the title of a column's group stands before its own."""
    titles = [clean(" ".join(filter(None, (column.group, column.title)))) for column in columns]
    return titles, [list(map(clean, row)) for row in zip(*(column.cells for column in columns), strict=True)]


def html_table(table: Grid) -> str:
    """Return a table for a notebook."""
    titles, rows = table
    body = "".join(_line(row, "td") for row in rows)
    return f"<table><thead>{_line(titles, 'th')}</thead><tbody>{body}</tbody></table>"


def escaped(text: str) -> str:
    """Return text as HTML shows it as it is."""
    return html.escape(clean(text))


def _line(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escaped(cell)}</{tag}>' for cell in cells)}</tr>"
