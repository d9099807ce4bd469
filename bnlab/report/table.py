"""The one renderer of tables in a terminal: columns give way by rank, numbers stand on their decimal, nothing is cut.

    drawn = draw([Column("norm", names, left=True), Column("test acc %", cells)], out)
    out.print(Group(*drawn.lines))

Where all columns are too wide, those of the highest rank take their short form or go. What is too wide even then is
split into parts below one another, or each row becomes a block. `joined` and `bullets` are the text around a table.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from bnlab.report.figures import MISSING, Cell

if TYPE_CHECKING:
    from bnlab.report.console import Terminal

GAP, GROUP_GAP = 2, 1  # between columns, and between those of one group
NARROWEST = 60  # below, a table that would leave columns out becomes blocks, which hold them all
LEAST_TEXT = 16  # columns for text that wraps
_PLAIN_NUMBER = re.compile(r"(?:> )?[+-]?[\d,]+(?P<fraction>\.\d+)?")


@dataclass(frozen=True)
class Column:
    """One column, a cell a row, and a shorter form to fall back on."""

    title: str
    cells: Sequence[Cell | str]
    key: str = ""  # what `--metric` takes; of a name, its title above blocks
    short: Sequence[Cell | str] | None = None
    rank: int = 0  # 0 stays; the highest gives way first
    left: bool = False  # text, not numbers
    is_name: bool = False  # tells the rows apart: above each block, and beside each part; if none is, the first
    wraps: bool = False  # takes several lines of the room that the others leave
    group: str = ""  # stands above neighbours that share it
    styles: Sequence[str] = ()  # one a cell


@dataclass(frozen=True)
class Drawn:
    """The lines of a table, and which columns are in them."""

    lines: list[Text]
    kept: list[Column]
    left_out: list[Column]


def draw(
    columns: Sequence[Column],
    out: Terminal,
    *,
    above: Mapping[int, str] = {},
    notes: Mapping[int, str] = {},
    styles: Mapping[int, str] = {},
    split: bool = False,
) -> Drawn:
    """Return a table as wide as the console allows.

    `above` has what stands above a row, a rule where it is empty; `notes` take the place of a row's figures, `styles`
    are those of whole rows. `split` puts columns that are too wide below one another.
    """
    rows = _Rows(above, notes, styles)
    forms = [_forms(column, out) for column in columns]
    chosen = fold(forms, out.width)
    kept = [form for form in chosen or [] if form is not None]
    if chosen is None and split:
        parts = _parts(forms, out.width)
        if parts is not None:
            lines = [line for part in parts for line in (Text(""), *_table(part, rows, out))]
            return Drawn(lines[1:], list(columns), [])
    if chosen is None or (out.width < NARROWEST and len(kept) < len(columns)):
        return Drawn(list(_blocks(forms, rows, out)), list(columns), [])
    left_out = sorted((form[0].column for form, kept in zip(forms, chosen, strict=True) if kept is None), key=_rank)
    return Drawn(list(_table(kept, rows, out)), [form.column for form in kept], left_out)


def joined(parts: Sequence[str], out: Terminal, style: str = "") -> list[Text]:
    """Return the parts on as many lines as it takes, broken between parts where they are not too long themselves."""
    lines = wrapped([out.show(part) for part in parts], out.width, out.show(" · "))
    return [Text(piece, style, no_wrap=True) for line in lines for piece in _wrap(line, out.width)]


def bullets(notes: Sequence[str], out: Terminal) -> list[Text]:
    """Return a dim paragraph a note."""
    mark = "· " if out.unicode else "- "
    return [
        Text((mark if not number else "  ") + line, "dim", no_wrap=True)
        for note in notes
        for number, line in enumerate(_wrap(out.show(note), out.width - 2))
    ]


def wrapped(parts: Sequence[str], width: int, between: str) -> list[str]:
    """Return the parts joined on as many lines as `width` asks for, broken between parts only."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1] + between + part) <= width:
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines


def shortened(text: str, width: int) -> str:
    """Return `text` in at most `width` columns, cut in the middle: both ends of a layer's name tell it apart."""
    if cell_len(text) <= width:
        return text
    front = (width - 1) // 2
    return f"{text[:front]}…{text[len(text) - (width - 1 - front) :]}"


# ---------------------------------------------------------------- the forms of a column


@dataclass(frozen=True)
class _Form:
    """A column in one of its forms, as lines of text in the console's characters."""

    column: Column
    title: list[str]
    cells: list[list[str]]
    width: int


def _forms(column: Column, out: Terminal) -> list[_Form]:
    """Return the forms from the narrowest to the widest: short with a folded title, folded, whole."""
    column = replace(column, title=out.show(column.title), group=out.show(column.group), key=out.show(column.key))
    whole = _aligned(column.cells, column.left, out.show)
    body = _body(whole)
    if column.wraps:
        width = min(body, LEAST_TEXT)
        return [_Form(column, [column.title], whole, max(width, cell_len(column.title)))] * 3
    folded = _folded(column.title, body)
    forms = [_Form(column, title, whole, max(body, *map(cell_len, title))) for title in (folded, [column.title])]
    if column.short is None:
        return [forms[0], *forms]
    short = _aligned(column.short, column.left, out.show)
    folded = _folded(column.title, _body(short))
    return [_Form(column, folded, short, max(_body(short), *map(cell_len, folded))), *forms]


def _aligned(cells: Sequence[Cell | str], left: bool, show: Callable[[object], str]) -> list[list[str]]:
    """Return each cell as lines: numbers on their decimal, what follows them to the left."""
    whole = [Cell(cell) if isinstance(cell, str) else cell for cell in cells]
    heads = [cell.head for cell in whole] if left else _on_decimal([cell.head for cell in whole])
    heads, tails = list(map(show, heads)), [show(cell.tail) for cell in whole]
    tail = max(map(cell_len, tails), default=0)
    head = max(map(cell_len, heads), default=0) if tail or not left else 0
    lines = []
    for cell, first, rest in zip(whole, heads, tails, strict=True):
        text = _pad(first, head, left) + (" " + _pad(rest, tail, True) if tail else "")
        lines.append([text, *map(show, cell.below)])
    return lines


def _on_decimal(heads: Sequence[str]) -> list[str]:
    """Return plain numbers with their decimal points below one another; a column with others stays as it is."""
    matches = [_PLAIN_NUMBER.fullmatch(head) for head in heads]
    if not all(match or head in ("", MISSING) for head, match in zip(heads, matches, strict=True)):
        return list(heads)
    fractions = [match["fraction"] or "" if match else None for match in matches]
    longest = max((len(fraction) for fraction in fractions if fraction is not None), default=0)
    return [
        head if fraction is None else head + " " * (longest - len(fraction))
        for head, fraction in zip(heads, fractions, strict=True)
    ]


def _folded(title: str, body: int) -> list[str]:
    """Return the title on two lines where the figures below are narrower. A number keeps its unit."""
    glued = title.replace(" %", "\u00a0%")
    folds = (
        textwrap.wrap(glued, room, break_on_hyphens=False, break_long_words=False)
        for room in range(max(body, 1), len(glued) + 1)
    )
    lines = next((lines for lines in folds if len(lines) <= 2), [glued])
    return [line.replace("\u00a0", " ") for line in lines] or [""]


def _body(cells: Sequence[Sequence[str]]) -> int:
    return max((cell_len(line) for lines in cells for line in lines), default=0)


# ---------------------------------------------------------------- what fits


def fold(forms: Sequence[Sequence[_Form]], width: int) -> list[_Form | None] | None:
    """Return a form for each column that fits into `width`, None for one left out; None if those that stay do not fit.

    By rank, the columns are first let in at their narrowest, then get their intervals, then their titles on one line.
    """
    chosen = [form[1] if not form[0].column.rank else None for form in forms]
    if table_width(chosen) > width:
        return None
    by_rank = sorted(range(len(forms)), key=lambda i: forms[i][0].column.rank)
    for size in range(3):
        for i in by_rank:
            trial = [*chosen[:i], forms[i][size], *chosen[i + 1 :]]
            if (chosen[i] is None) == (size == 0) and table_width(trial) <= width:
                chosen = trial
    return chosen


def table_width(forms: Sequence[_Form | None]) -> int:
    """Return the width of a table of those forms that are there."""
    bundles = _bundles([form for form in forms if form is not None])
    return sum(map(_bundle_width, bundles)) + GAP * (len(bundles) - 1)


def _parts(forms: Sequence[Sequence[_Form]], width: int) -> list[list[_Form]] | None:
    """Return the columns in parts, each with the names; a group stays whole where it fits, or its short form does.

    None where a column beside the names is too wide.
    """
    names, rest = _split_names(forms)
    first = [form[2] for form in names]
    parts: list[list[_Form]] = []
    for bundle in _bundles([form[1] for form in rest]):
        short = [form[0] for form in rest if any(form[1] is other for other in bundle)]
        whole = next((each for each in (bundle, short) if table_width([*first, *each]) <= width), None)
        for piece in [whole] if whole else [[form] for form in bundle]:
            if table_width([*first, *piece]) > width:
                return None
            if parts and table_width([*parts[-1], *piece]) <= width:
                parts[-1] += piece
            else:
                parts.append([*first, *piece])
    return parts


def _split_names(forms: Sequence[Sequence[_Form]]) -> tuple[Sequence[Sequence[_Form]], Sequence[Sequence[_Form]]]:
    names = [form for form in forms if form[0].column.is_name] or forms[:1]
    return names, [form for form in forms if form not in names]


def _bundles(forms: Sequence[_Form]) -> list[list[_Form]]:
    """Return neighbours of one group together, any other column by itself."""
    bundles: list[list[_Form]] = []
    for form in forms:
        group = form.column.group
        if group and bundles and bundles[-1][0].column.group == group:
            bundles[-1].append(form)
        else:
            bundles.append([form])
    return bundles


def _bundle_width(bundle: Sequence[_Form]) -> int:
    return max(_inside(bundle), cell_len(bundle[0].column.group))


def _inside(bundle: Sequence[_Form]) -> int:
    return sum(form.width for form in bundle) + GROUP_GAP * (len(bundle) - 1)


def _rank(column: Column) -> int:
    return column.rank


# ---------------------------------------------------------------- lines


@dataclass(frozen=True)
class _Rows:
    """What rows have beside their cells."""

    above: Mapping[int, str]
    notes: Mapping[int, str]
    styles: Mapping[int, str]


def _table(forms: Sequence[_Form], rows: _Rows, out: Terminal) -> Iterator[Text]:
    forms = _with_wrapped_text(forms, out.width)
    bundles = _bundles(forms)
    rule = Text(out.show("─") * table_width(forms), "dim", no_wrap=True)
    if any(form.column.group for form in forms):
        titles = [f"{bundle[0].column.group:<{_bundle_width(bundle)}}" for bundle in bundles]
        yield Text((" " * GAP).join(titles).rstrip(), "bold", no_wrap=True)
    if any(form.column.title for form in forms):
        tallest = max(len(form.title) for form in forms)
        for depth in range(-tallest, 0):
            yield _line(bundles, partial(_title, depth=depth))
        yield rule
    margin = forms[0].width + GAP
    for row in range(len(forms[0].cells)):
        if row in rows.above:
            yield Text(out.show(rows.above[row]), "bold", no_wrap=True) if rows.above[row] else rule
        if row in rows.notes:
            for number, text in enumerate(_wrap(out.show(rows.notes[row]), out.width - margin)):
                yield Text(_pad("" if number else forms[0].cells[row][0], margin, True) + text, "dim", no_wrap=True)
            continue
        for depth in range(max(len(form.cells[row]) for form in forms)):
            line = _line(bundles, partial(_cell, row=row, depth=depth))
            line.style = rows.styles.get(row, "")
            yield line


def _title(form: _Form, depth: int) -> tuple[str, str]:
    return form.title[depth] if -depth <= len(form.title) else "", "dim"


def _cell(form: _Form, row: int, depth: int) -> tuple[str, str]:
    lines = form.cells[row]
    return lines[depth] if depth < len(lines) else "", form.column.styles[row] if form.column.styles else ""


def _line(bundles: Sequence[Sequence[_Form]], text_of: Callable[[_Form], tuple[str, str]]) -> Text:
    line = Text(no_wrap=True)
    for number, bundle in enumerate(bundles):
        line.append(" " * GAP if number else "")
        for place, form in enumerate(bundle):
            text, style = text_of(form)
            line.append(" " * GROUP_GAP if place else "")
            line.append(_pad(text, form.width, form.column.left), style)
        line.append(" " * (_bundle_width(bundle) - _inside(bundle)))
    line.rstrip()
    return line


def _with_wrapped_text(forms: Sequence[_Form], console: int) -> list[_Form]:
    """Return the forms with the text that wraps in the room that is left."""
    left = max(console - table_width(forms), 0)
    laid = []
    for form in forms:
        if form.column.wraps:
            room = form.width + left
            cells = [[piece for line in lines for piece in _wrap(line, room)] for lines in form.cells]
            width = max(_body(cells), cell_len(form.column.title))
            left -= width - form.width
            form = replace(form, cells=cells, width=width)
        laid.append(form)
    return laid


def _blocks(forms: Sequence[Sequence[_Form]], rows: _Rows, out: Terminal) -> Iterator[Text]:
    """Yield each row as a block: what names it, then one line a figure, or more where the figure would be cut."""
    names, figures = _split_names(forms)
    margin = max((cell_len(form[0].column.title) for form in figures), default=0)
    for row in range(len(forms[0][0].cells)):
        if row and margin:
            yield Text("")
        if rows.above.get(row):
            yield Text(out.show(rows.above[row]), "bold")
        cells = [(form[0].column.key or form[0].column.title, form[0].cells[row][0].strip()) for form in names]
        name = " ".join(f"{title}={cell}" if title else cell for title, cell in cells)
        yield from (Text(line, "bold", no_wrap=True) for line in _wrap(name, out.width))
        if row in rows.notes:
            yield from (Text("  " + line, "dim") for line in _wrap(out.show(rows.notes[row]), out.width - 2))
            continue
        for narrow, whole, _ in figures:
            title, style = whole.column.title, whole.column.styles[row] if whole.column.styles else ""
            text, short = _on_one_line(whole, row), _on_one_line(narrow, row)
            if not text:
                continue
            indent = 2 + (margin + 2 if margin else 0)
            if indent + cell_len(text) > out.width and cell_len(text) > out.width - 4:
                text = short
            if indent + cell_len(text) <= out.width:
                yield Text.assemble((f"  {title:<{margin}}  " if margin else "  ", "dim"), (text, style))
                continue
            if title:
                yield Text(f"  {title}", "dim")
            yield from (Text("    " + line, style, no_wrap=True) for line in _wrap(text, out.width - 4))


def _on_one_line(form: _Form, row: int) -> str:
    return ", ".join(line.rstrip() if form.column.left else " ".join(line.split()) for line in form.cells[row])


def _pad(text: str, width: int, left: bool) -> str:
    margin = " " * (width - cell_len(text))
    return text + margin if left else margin + text


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 10), break_on_hyphens=False) or [""]
