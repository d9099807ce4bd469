"""The conformance card in a terminal: one normalization property by property, or many as rows of a matrix.

The card has a line for each property: whether it is as declared, whether it holds, the measured error, what it says.
The matrix keeps yes and no; its columns stand side by side where there is room, else in blocks below each other.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from bnlab.compare.notes import count_of
from bnlab.conformance.findings import Card, Finding, Property
from bnlab.report.console import Terminal
from bnlab.report.figures import MISSING
from bnlab.report.table import wrapped

GAP, GROUP_GAP = 1, 2  # columns of the matrix, in a group and between groups
LEAST_TEXT = 24  # columns for what a property says; below it stands under the figures
_MARKS = {True: ("✗", "bold red"), False: ("✓", "green"), None: (" ", "")}
_DECIMALS_FROM, _DECIMALS_TO = 0.01, 1000.0  # errors in between are written without a power of ten


def error_text(error: float | None) -> str:
    """Return an error in a few signs: 0, 2e-16, 0.28."""
    if error is None:
        return MISSING
    if error == float("inf"):
        return "∞"
    if error == 0 or _DECIMALS_FROM <= error < _DECIMALS_TO:
        return f"{error:.2g}"
    mantissa, _, power = f"{error:.0e}".partition("e")
    return f"{mantissa}e{int(power)}"


def yes_no(value: bool | None) -> str:
    """Return yes, no, or a dash for neither."""
    return MISSING if value is None else "yes" if value else "no"


# ---------------------------------------------------------------- one card


def card_table(card: Card, out: Terminal) -> Group:
    """Return one card, as wide as the console."""
    about = [card.subject, count_of(card.channels, "channel"), f"batches of up to {card.batch}"]
    about.append("images only" if card.images_only else "images and vectors")
    lines: list[RenderableType] = [Text(line, "bold") for line in _joined(about, out)]
    names = max(cell_len(finding.about.short) for finding in card.findings)
    errors = max(len("error"), *(cell_len(out.show(error_text(finding.error))) for finding in card.findings))
    margin = 2 + names + 2 + len("holds") + 2 + errors + 2
    lines += [Text(""), Text(f"{'':{2 + names}}  holds  {'error':>{errors}}", "dim")]
    for group, findings in groupby(card.findings, key=lambda finding: finding.about.group):
        lines.append(Text(group, "bold"))
        for finding in findings:
            lines += _lines(finding, names, errors, margin, out)
    lines.append(Text(""))
    return Group(*lines, *_dim(_card_legend(card), out), *_verdict([card], out))


def _lines(finding: Finding, names: int, errors: int, margin: int, out: Terminal) -> Iterator[Text]:
    mark, style = _MARKS[finding.contradicts if finding.expected is not None else None]
    error = out.show(error_text(finding.error))
    first = Text.assemble(
        (out.show(mark) + " ", style),
        f"{out.show(finding.about.short):<{names}}  ",
        (f"{out.show(yes_no(finding.found)):<5}  ", "bold red" if finding.contradicts else ""),
        (f"{error:>{errors}}  ", ""),
        no_wrap=True,
    )
    said = f"{finding.about.line} ({finding.note})" if finding.note and not finding.contradicts else finding.about.line
    texts = [(line, "") for line in _wrapped(said, margin, out)]
    if finding.contradicts:
        against = "; ".join(part for part in (finding.note, f"declared: {yes_no(finding.expected)}") if part)
        texts += [(line, "red") for line in _wrapped(against, margin, out)]
    if out.width - margin < LEAST_TEXT:
        first.rstrip()
        yield first
        yield from (Text("    " + line, style) for line, style in texts)
        return
    first.append(*texts[0])
    yield first
    yield from (Text(" " * margin + line, style, no_wrap=True) for line, style in texts[1:])


def _wrapped(text: str, margin: int, out: Terminal) -> list[str]:
    room = out.width - margin if out.width - margin >= LEAST_TEXT else max(out.width - 4, 10)
    return textwrap.wrap(out.show(text), room)


def _card_legend(card: Card) -> list[str]:
    error = "error: largest difference over the RMS of the output, in float64 unless said"
    dead = "dead: no effect on the training output, or no gradient"
    marks = ["✓: as declared", "✗: against what is declared"] if card.declared else []
    if card.declared and any(finding.expected is None for finding in card.findings):
        marks.append("no mark: not declared")
    return [*marks, dead, error]


# ---------------------------------------------------------------- the matrix


def matrix_table(cards: Sequence[Card], out: Terminal) -> Group:
    """Return all cards as rows, in as few blocks of columns as the width allows."""
    longest = max(cell_len(out.show(card.subject)) for card in cards)
    label = min(max(longest, len("norm")), max(out.width // 3, 12))
    columns = [_Column([card.findings[i] for card in cards], out) for i in range(len(cards[0].findings))]
    lines: list[RenderableType] = []
    for block in _blocks(columns, out.width - label - 2):
        lines += [Text("")] if lines else []
        lines += _block(block, cards, label, out)
    legend = ["yes: it holds", "no: it does not", f"{MISSING}: undefined", "!: against what is declared"]
    more = ["bnlab check norm=NAME shows what each property says and the measured error"]
    return Group(*lines, Text(""), *_dim(legend, out), *_dim(more, out), *_verdict(cards, out))


class _Column:
    """One property: its heading on two lines and a cell for each card."""

    def __init__(self, findings: Sequence[Finding], out: Terminal) -> None:
        self.about: Property = findings[0].about
        words = out.show(self.about.short).split(" ")
        self.header = ["", *words] if len(words) == 1 else words
        self.cells = [out.show(yes_no(f.found)) + ("!" if f.contradicts else "") for f in findings]
        self.styles = [
            "bold red" if f.contradicts else "" if f.found is False else "dim" for f in findings
        ]  # a no is what sets a strategy apart
        self.width = max(map(cell_len, [*self.header, *self.cells]))


def _groups(columns: Sequence[_Column]) -> list[list[_Column]]:
    return [list(group) for _, group in groupby(columns, key=lambda column: column.about.group)]


def _width(columns: Sequence[_Column]) -> int:
    inside = sum(column.width for column in columns) + GAP * (len(columns) - 1)
    return inside + (GROUP_GAP - GAP) * (len(_groups(columns)) - 1)


def _blocks(columns: Sequence[_Column], room: int) -> list[list[_Column]]:
    """Cut between groups, or inside one that alone is too wide."""
    blocks: list[list[_Column]] = [[]]
    for group in _groups(columns):
        pieces = [group] if _width(group) <= room else [[column] for column in group]
        for piece in pieces:
            if blocks[-1] and _width([*blocks[-1], *piece]) > room:
                blocks.append([])
            blocks[-1] += piece
    return blocks


def _block(columns: Sequence[_Column], cards: Sequence[Card], label: int, out: Terminal) -> Iterator[Text]:
    groups = _groups(columns)
    heads = [(group[0].about.group, max(_width(group), cell_len(group[0].about.group))) for group in groups]
    yield _row("", [[(f"{out.show(text):<{width}}", "bold")] for text, width in heads], label)
    for depth in (0, 1) if any(column.header[0] for column in columns) else (1,):
        cells = [[(f"{column.header[depth]:<{column.width}}", "dim") for column in group] for group in groups]
        yield _row("norm" if depth else "", cells, label, "dim")
    yield Text(("─" if out.unicode else "-") * (label + 2 + _width(columns)), "dim")
    for number, card in enumerate(cards):
        cells = [[(f"{c.cells[number]:<{c.width}}", c.styles[number]) for c in group] for group in groups]
        yield _row(_cut(out.show(card.subject), label, out), cells, label)


def _row(name: str, groups: Sequence[Sequence[tuple[str, str]]], label: int, style: str = "") -> Text:
    line = Text(no_wrap=True).append(f"{name:<{label}}  ", style)
    for number, cells in enumerate(groups):
        line.append(" " * GROUP_GAP if number else "")
        for place, (text, cell_style) in enumerate(cells):
            line.append(" " * GAP if place else "")
            line.append(text, cell_style)
    line.rstrip()
    return line


def _cut(text: str, width: int, out: Terminal) -> str:
    more = out.show("…")
    return text if cell_len(text) <= width else text[: width - len(more)] + more


# ---------------------------------------------------------------- below both


def _verdict(cards: Sequence[Card], out: Terminal) -> Iterator[Text]:
    """Say what is against what is declared, one property a line; or that nothing is."""
    found = [(card, finding) for card in cards for finding in card.contradictions]
    for card, finding in found:
        measured = "" if finding.error is None else f" (error {error_text(finding.error)})"
        holds = "holds" if finding.found else "does not hold"
        text = f"✗ {card.subject}, {finding.about.short}: {holds}{measured}, declared: {yes_no(finding.expected)}"
        lines = textwrap.wrap(out.show(text), max(out.width, 20), subsequent_indent="  ")
        yield from (Text(line, "red", no_wrap=True) for line in lines)
    number = sum(finding.expected is not None for card in cards for finding in card.findings)
    if number and not found:
        which = f"all {number} declared properties are" if number > 1 else "the declared property is"
        yield Text(out.show(f"✓ {which} as declared"), "green")


def _joined(parts: Sequence[str], out: Terminal) -> list[str]:
    lines = wrapped([out.show(part) for part in parts], out.width, " · " if out.unicode else " | ")
    return [piece for line in lines for piece in (textwrap.wrap(line, out.width) or [""])]


def _dim(parts: Sequence[str], out: Terminal) -> list[Text]:
    return [Text(line, "dim", no_wrap=True) for line in _joined(parts, out)]


@contextmanager
def checking(out: Terminal) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows, on a terminal, what is being checked."""
    if not out.is_terminal or out.is_dumb_terminal:
        yield lambda subject: None
        return
    with out.status("", spinner="line") as status:
        yield lambda subject: status.update(out.show(f"checking {subject}"))
