"""The one writer for programs and files: rows as aligned text, CSV, JSON and Markdown.

JSON keeps text as it is (its strings escape every control character); the others show control characters as escapes. A
text cell of a CSV that a spreadsheet would run as a formula starts with an apostrophe. `FORMATS` write results whose
rows all have the same keys; a comparison, a matrix and a card lay out rows of their own and write them with the same
functions.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from bnlab.compare.arms import text_of
from bnlab.report.console import Terminal, clean, results

SCHEMA = 1
Row = Mapping[str, Any]  # the same keys in every row: text, numbers, or None for what is not known
_FORMULA = re.compile(r"\s*[=+\-@]")
_MARKDOWN = re.compile(r"[\\*<\[|]|(?<!\w)_|_(?!\w)")


def json_text(document: Mapping[str, Any]) -> str:
    """Return JSON in which what is not finite is null."""
    return json.dumps(finite(document), indent=2, allow_nan=False) + "\n"


def csv_text(titles: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return lines of cells: numbers in full, nothing for None, text that is never a formula."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(map(inert, titles))
    writer.writerows(map(inert, row) for row in rows)
    return target.getvalue()


def aligned_lines(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return lines to grep, their cells below one another."""
    table = [titles, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(titles))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> str:
    """Return a GitHub table of cells that are escaped already; `right` are the titles of columns of numbers."""
    ruler = ["---:" if title in right else "---" for title in titles]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ruler, *rows))


def inert(value: Any) -> Any:
    """Return a CSV cell: numbers as they are, text cleaned and never a formula."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    text = clean(text_of(value))
    return f"'{text}" if _FORMULA.match(text) else text


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too."""
    return _MARKDOWN.sub(r"\\\g<0>", clean(text.strip()))


def finite(value: Any) -> Any:
    """Return the value with null for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- rows that all have the same keys


def as_json(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return {"schema": 1, **head, "rows": [...]}; what is not finite is null."""
    return json_text({"schema": SCHEMA, **head, "rows": rows})


def as_csv(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the rows under their keys; `head` is left to the other formats."""
    return csv_text(rows[0], ([str(v) if isinstance(v, bool) else v for v in row.values()] for row in rows))


def as_plain(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return aligned text to grep: a line for each entry of `head`, then the rows."""
    lines = [f"{key}: {clean(value)}" for key, value in head.items() if value is not None]
    lines += aligned_lines(list(rows[0]), [[_text(value) or "-" for value in row.values()] for row in rows])
    return "\n".join(lines) + "\n"


def as_markdown(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return `head` as a line each and the rows, where there are any, as one GitHub table."""
    lines = [f"- {key}: {escaped(str(value))}" for key, value in head.items() if value is not None]
    if not rows:
        return "\n".join(lines) + "\n"
    table = markdown_table(list(rows[0]), [[escaped(_text(value)) for value in row.values()] for row in rows])
    return "\n".join([*lines, "", table]) + "\n"


TIDY_FORMATS: Mapping[str, Callable[[Mapping[str, Any], Sequence[Row]], str]] = {
    "plain": as_plain,
    "csv": as_csv,
    "json": as_json,
    "md": as_markdown,
}


def show(
    format: str, tables: Iterable[Callable[[Terminal], RenderableType]], head: Mapping[str, Any], rows: Sequence[Row]
) -> None:
    """Print tables below one another, or where `format` is another than table, the rows in that."""
    out = results()
    if format != "table":
        out.emit(TIDY_FORMATS[format](head, rows))
        return
    for number, table in enumerate(tables):
        if number:
            out.say("")
        out.print(table(out), crop=False)  # a command to be copied stays on one line


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else clean(value)
