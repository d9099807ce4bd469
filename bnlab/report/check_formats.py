"""Conformance cards for programs and files: plain text, CSV, JSON and Markdown, one property a line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bnlab.compare.notes import count_of
from bnlab.conformance.findings import Card, Finding
from bnlab.report.check_report import error_text, yes_no
from bnlab.report.console import clean

SCHEMA = 1
_TITLES = ("subject", "property", "declared", "holds", "error", "contradicts", "note")


def as_json(cards: Sequence[Card]) -> str:
    """Return JSON: of one card the object itself, of several `{"schema": 1, "cards": [...]}` of such objects.

    A card is {"schema", "subject", "channels", "batch", "images_only", "contradictions", "properties": {key: {"group",
    "meaning", "declared", "holds", "error", "contradicts", "failed", "note"}}}; what is unknown or not finite is null.
    """
    documents = [_document(card) for card in cards]
    whole = documents[0] if len(documents) == 1 else {"schema": SCHEMA, "cards": documents}
    return json.dumps(whole, indent=2, allow_nan=False) + "\n"


def as_csv(cards: Sequence[Card]) -> str:
    """Return one line a card and property."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(_TITLES)
    writer.writerows(_cells(card, finding) for card in cards for finding in card.findings)
    return target.getvalue()


def as_plain(cards: Sequence[Card]) -> str:
    """Return aligned text to grep, one line a card and property."""
    rows = [_TITLES, *(_cells(card, finding) for card in cards for finding in card.findings)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_TITLES))]
    lines = ["  ".join(f"{cell or '-':<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def as_markdown(cards: Sequence[Card]) -> str:
    """Return one GitHub table a card, under its name."""
    blocks = []
    for card in cards:
        rows = [f"**{_escaped(card.subject)}**, {count_of(card.channels, 'channel')}", ""]
        rows += ["| property | declared | holds | error | meaning |", "| --- | --- | --- | ---: | --- |"]
        for finding in card.findings:
            meaning = f"{finding.about.line} {finding.note}".strip()
            holds = yes_no(finding.found) + (" **against what is declared**" if finding.contradicts else "")
            cells = (finding.about.short, yes_no(finding.expected), holds, error_text(finding.error), _escaped(meaning))
            rows.append(f"| {' | '.join(cells)} |")
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks) + "\n"


CARD_FORMATS: Mapping[str, Callable[[Sequence[Card]], str]] = {
    "plain": as_plain,
    "csv": as_csv,
    "json": as_json,
    "md": as_markdown,
}


def _document(card: Card) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "subject": card.subject,
        "channels": card.channels,
        "batch": card.batch,
        "images_only": card.images_only,
        "contradictions": len(card.contradictions),
        "properties": {finding.about.key: _finding(finding) for finding in card.findings},
    }


def _finding(finding: Finding) -> dict[str, Any]:
    known = finding.error is not None and math.isfinite(finding.error)
    return {
        "group": finding.about.group,
        "meaning": finding.about.line,
        "declared": finding.expected,
        "holds": finding.found,
        "error": finding.error if known else None,
        "contradicts": finding.contradicts,
        "failed": finding.failed,
        "note": finding.note,
    }


def _cells(card: Card, finding: Finding) -> tuple[str, ...]:
    truth = {None: "", True: "yes", False: "no"}
    error = "" if finding.error is None else f"{finding.error:.3g}"
    declared, holds, against = truth[finding.expected], truth[finding.found], truth[finding.contradicts]
    return (clean(card.subject), finding.about.key, declared, holds, error, against, clean(finding.note))


def _escaped(text: str) -> str:
    return clean(text).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
