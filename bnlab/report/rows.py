"""Findings for programs and files: one row a figure, as plain text, CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bnlab.report.console import clean
from bnlab.report.formats import finite

SCHEMA = 1
Row = Mapping[str, Any]  # the same keys in every row: text, numbers, or None for what is not known


def as_json(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return {"schema": 1, **head, "rows": [...]}; what is not finite is null."""
    document = {"schema": SCHEMA, **head, "rows": [dict(row) for row in rows]}
    return json.dumps(finite(document), indent=2, allow_nan=False) + "\n"


def as_csv(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the rows under their keys; `head` is left to the other formats."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(["" if value is None else _text(value, "{!r}") for value in row.values()] for row in rows)
    return target.getvalue()


def as_plain(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return aligned text to grep: a line for each entry of `head`, then the rows."""
    lines = [f"{key}: {clean(value)}" for key, value in head.items() if value is not None]
    table = [list(rows[0]), *([_text(value) or "-" for value in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines += ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join(lines) + "\n"


def as_markdown(head: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return `head` as a line each and the rows as one GitHub table."""
    lines = [f"- {key}: {_escaped(str(value))}" for key, value in head.items() if value is not None]
    lines += ["", f"| {' | '.join(rows[0])} |", f"| {' | '.join('---' for _ in rows[0])} |"]
    lines += [f"| {' | '.join(_escaped(_text(value)) for value in row.values())} |" for row in rows]
    return "\n".join(lines) + "\n"


TIDY_FORMATS: Mapping[str, Callable[[Mapping[str, Any], Sequence[Row]], str]] = {
    "plain": as_plain,
    "csv": as_csv,
    "json": as_json,
    "md": as_markdown,
}


def _text(value: Any, number: str = "{:.6g}") -> str:
    if value is None:
        return ""
    return number.format(value) if isinstance(value, float) else clean(value)


def _escaped(text: str) -> str:
    return clean(text).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
