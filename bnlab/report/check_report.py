"""The conformance card: one normalization property by property, or many as rows of a matrix; for pages and programs.

The card has a line for each property: whether it is as declared, whether it holds, the measured error, what it says.
The matrix keeps yes and no.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from bnlab.conformance.findings import Card, Finding
from bnlab.errors import count_of
from bnlab.report.console import Terminal
from bnlab.report.figures import MISSING, power_of_ten
from bnlab.report.rows import SCHEMA, TIDY_FORMATS, Row, escaped, json_text, markdown_table
from bnlab.report.sheet import Sheet
from bnlab.report.table import Column, draw, joined, shortened

_MARKS = {True: ("✗ ", "bold red"), False: ("✓ ", "green"), None: ("  ", "")}
_MATRIX_LEGEND = ("yes: it holds", "no: it does not", f"{MISSING}: undefined", "!: against what is declared")
_ERRORS = (
    "dead: no effect on the training output, or no gradient",
    "error: largest difference over the RMS of the output, in float64 unless said",
)
_MORE = "bnlab check norm=NAME shows what each property says and the measured error"
_DECIMALS_FROM, _DECIMALS_TO = 0.01, 1000.0  # errors in between are written without a power of ten


def error_text(error: float | None) -> str:
    """Return an error in a few signs: 0, 2e-16, 0.28."""
    if error is None:
        return MISSING
    if error == float("inf"):
        return "∞"
    if error == 0 or _DECIMALS_FROM <= error < _DECIMALS_TO:
        return f"{error:.2g}"
    return power_of_ten(error, 0)


def yes_no(value: bool | None) -> str:
    """Return yes, no, or a dash for neither."""
    return MISSING if value is None else "yes" if value else "no"


def _held(finding: Finding) -> str:
    return yes_no(finding.found) + "!" * finding.contradicts


# ---------------------------------------------------------------- one card


def card_table(card: Card, out: Terminal) -> Group:
    """Return one card, as wide as the console."""
    groups = [finding.about.group for finding in card.findings]
    above = {row: group for row, group in enumerate(groups) if group not in groups[:row]}
    table = draw(_card_columns(card), out, above=above).lines
    legend = joined(_legend(card), out, "dim")
    return Group(*joined(_card_about(card), out, "bold"), Text(""), *table, Text(""), *legend, *_verdict([card], out))


def _card_about(card: Card) -> list[str]:
    kind = ("vectors", "sequences", "images", "volumes")[card.axes]
    takes = f"{kind} only" if card.images_only or not card.axes else f"{kind} and vectors"
    return [card.subject, count_of(card.channels, "channel"), f"batches of up to {card.batch}", takes]


def _card_columns(card: Card) -> list[Column]:
    marks = [_MARKS[finding.contradicts if finding.expected is not None else None] for finding in card.findings]
    against = ["bold red" if finding.contradicts else "" for finding in card.findings]
    return [
        Column(
            "",
            [mark + finding.about.short for (mark, _), finding in zip(marks, card.findings, strict=True)],
            left=True,
            styles=[style for _, style in marks],
        ),
        Column("holds", [yes_no(finding.found) for finding in card.findings], left=True, styles=against),
        Column("error", [error_text(finding.error) for finding in card.findings]),
        Column("", [_meaning(finding) for finding in card.findings], left=True, wraps=True, styles=against),
    ]


def _meaning(finding: Finding) -> str:
    if not finding.contradicts:
        return f"{finding.about.line} ({finding.note})" if finding.note else finding.about.line
    against = "; ".join(part for part in (finding.note, f"declared: {yes_no(finding.expected)}") if part)
    return f"{finding.about.line} {against}"


def _legend(card: Card) -> list[str]:
    marks = ["✓: as declared", "✗: against what is declared"] if card.declared else []
    if card.declared and any(finding.expected is None for finding in card.findings):
        marks.append("no mark: not declared")
    return [*marks, *_ERRORS]


# ---------------------------------------------------------------- the matrix


def matrix_table(cards: Sequence[Card], out: Terminal) -> Group:
    """Return all cards as rows, their properties in as few parts as the width allows."""
    below = [*joined(_MATRIX_LEGEND, out, "dim"), *joined([_MORE], out, "dim"), *_verdict(cards, out)]
    return Group(*draw(_matrix(cards, max(out.width // 3, 12)), out, split=True).lines, Text(""), *below)


def _matrix(cards: Sequence[Card], room: int) -> list[Column]:
    columns = [Column("norm", [shortened(card.subject, room) for card in cards], left=True, is_name=True)]
    for place, finding in enumerate(cards[0].findings):
        findings = [card.findings[place] for card in cards]
        cells = list(map(_held, findings))
        # a no is what sets a strategy apart
        styles = ["bold red" if f.contradicts else "" if f.found is False else "dim" for f in findings]
        columns.append(Column(finding.about.short, cells, left=True, group=finding.about.group, styles=styles))
    return columns


def _verdict(cards: Sequence[Card], out: Terminal) -> Iterator[Text]:
    """Say what is against what is declared, one property a line; or that nothing is."""
    contradictions = [(card, finding) for card in cards for finding in card.contradictions]
    for card, finding in contradictions:
        measured = "" if finding.error is None else f" (error {error_text(finding.error)})"
        holds = "holds" if finding.found else "does not hold"
        text = f"✗ {card.subject}, {finding.about.short}: {holds}{measured}, declared: {yes_no(finding.expected)}"
        lines = textwrap.wrap(out.show(text), max(out.width, 20), subsequent_indent="  ")
        yield from (Text(line, "red", no_wrap=True) for line in lines)
    number = sum(finding.expected is not None for card in cards for finding in card.findings)
    if number and not contradictions:
        which = f"all {number} declared properties are" if number > 1 else "the declared property is"
        yield from joined([f"✓ {which} as declared"], out, "green")


# ---------------------------------------------------------------- as a sheet


def card_sheet(cards: Sequence[Card]) -> Sheet:
    """Return what a page shows: of one card its properties, of several a row each. There are no curves to draw."""
    out = Terminal(io.StringIO())
    said = [line.plain for line in _verdict(cards, out)] or ["Nothing is declared: the card says what it does."]
    if len(cards) > 1:
        question = f"What do {count_of(len(cards), 'normalization')} do, and is that what they declare?"
        names = [f"{finding.about.group} {finding.about.short}" for finding in cards[0].findings]
        columns = [Column("property", names)]
        columns += [Column(card.subject, list(map(_held, card.findings))) for card in cards]
        return Sheet(question, said, ["a property a row"], columns, _MATRIX_LEGEND, notes=[_MORE])
    (card,) = cards
    columns = [
        Column("property", [finding.about.short for finding in card.findings]),
        Column("declared", [yes_no(finding.expected) for finding in card.findings]),
        Column("holds", list(map(_held, card.findings))),
        Column("error", [error_text(finding.error) for finding in card.findings]),
        Column("meaning", [_meaning(finding) for finding in card.findings]),
    ]
    question = f"What does {card.subject} do, and is that what it declares?"
    return Sheet(question, said, _card_about(card)[1:], columns, [*_MATRIX_LEGEND[3:], *_ERRORS])


# ---------------------------------------------------------------- for programs


def as_json(cards: Sequence[Card]) -> str:
    """Return JSON: of one card the object itself, of several `{"schema": 1, "cards": [...]}` of such objects.

    A card is {"schema", "subject", "channels", "batch", "images_only", "axes", "contradictions", "properties": {key:
    {"group", "meaning", "declared", "holds", "error", "contradicts", "failed", "note"}}}; what is unknown or not finite
    is null.
    """
    documents = [_document(card) for card in cards]
    return json_text(documents[0] if len(documents) == 1 else {"schema": SCHEMA, "cards": documents})


def as_csv(cards: Sequence[Card]) -> str:
    """Return one line a card and property."""
    return TIDY_FORMATS["csv"]({}, _rows(cards))


def as_plain(cards: Sequence[Card]) -> str:
    """Return aligned text to grep, one line a card and property."""
    return TIDY_FORMATS["plain"]({}, _rows(cards))


def as_markdown(cards: Sequence[Card]) -> str:
    """Return one GitHub table a card, under its name."""
    parts = []
    for card in cards:
        rows = []
        for finding in card.findings:
            holds = yes_no(finding.found) + (" **against what is declared**" if finding.contradicts else "")
            meaning = escaped(f"{finding.about.line} {finding.note}")
            error = error_text(finding.error)
            rows.append([finding.about.short, yes_no(finding.expected), holds, error, meaning])
        parts.append(f"**{escaped(card.subject)}**, {count_of(card.channels, 'channel')}")
        parts.append(markdown_table(["property", "declared", "holds", "error", "meaning"], rows, ["error"]))
    return "\n\n".join(parts) + "\n"


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
        "axes": card.axes,
        "contradictions": len(card.contradictions),
        "properties": {finding.about.key: _finding(finding) for finding in card.findings},
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "group": finding.about.group,
        "meaning": finding.about.line,
        "declared": finding.expected,
        "holds": finding.found,
        "error": finding.error,
        "contradicts": finding.contradicts,
        "failed": finding.failed,
        "note": finding.note,
    }


def _rows(cards: Sequence[Card]) -> list[Row]:
    """Return one row of text a card and property."""
    truth = {None: None, True: "yes", False: "no"}
    return [
        {
            "subject": card.subject,
            "property": finding.about.key,
            "declared": truth[finding.expected],
            "holds": truth[finding.found],
            "error": None if finding.error is None else f"{finding.error:.3g}",
            "contradicts": truth[finding.contradicts],
            "note": finding.note,
        }
        for card in cards
        for finding in card.findings
    ]
