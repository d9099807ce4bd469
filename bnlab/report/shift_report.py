"""Shifts in a terminal: one row a shift and severity, a column for each choice of statistics; and for programs.

Accuracy, calibration and dependence on batch mates stand side by side where there is room, else below each other.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from bnlab.report.console import Terminal
from bnlab.report.figures import MISSING, decimals_for, number
from bnlab.report.rows import Row
from bnlab.report.table import wrapped

if TYPE_CHECKING:
    from bnlab.experiment.shift_study import Study
    from bnlab.interval import Interval
    from bnlab.measure.robustness import Condition, Robustness

GROUP_GAP = 2  # columns between groups; inside a group it is 1


# ---------------------------------------------------------------- for programs


def shift_rows(study: Study) -> tuple[dict[str, Any], list[Row]]:
    """Return the head and a row for each shift, severity and choice of statistics; shares, not percent."""
    head = {
        "model": study.label,
        "samples": study.samples,
        "available": study.available,
        "batch_size": study.batch_size,
        "prior": study.prior,
        "keeps_statistics": study.keeps_statistics,
    }
    return head, [_tidy(at, found) for at in study.conditions for found in at.found]


def _tidy(at: Condition, found: Robustness) -> Row:
    row: dict[str, Any] = {"shift": at.shift, "severity": at.severity, "amount": at.amount, "unit": at.unit or None}
    row |= {"stats": found.stats, "samples": found.samples}
    for name, interval in (("accuracy", found.accuracy), ("difference", found.difference), ("loss", found.loss)):
        row[name] = interval.value if interval else None
        row[f"{name}_low"] = interval.low if interval else None
        row[f"{name}_high"] = interval.high if interval else None
    return row | {"ece": found.ece, "flips": found.flips, "mate_noise": found.mate_noise}


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class _Column:
    header: str
    cells: list[str]
    styles: list[str]
    width: int


@dataclass(frozen=True)
class _Group:
    """Columns that belong together, a choice of statistics each, below one title."""

    title: str
    columns: list[_Column]

    @property
    def width(self) -> int:
        return max(sum(column.width + 1 for column in self.columns) - 1, cell_len(self.title))


def shift_table(study: Study, out: Terminal) -> Group:
    """Return the table and what it says in words, as wide as the console."""
    names = _names(study)
    margin = max(map(cell_len, names)) + GROUP_GAP
    blocks = _blocks(_groups(study, out, out.width - margin), out.width - margin)
    head = [study.label, f"{study.samples:,} test images under shifts", f"batches of {study.batch_size}"]
    between = " · " if out.unicode else " | "
    lines: list[RenderableType] = [
        Text(line, "bold") for line in wrapped(list(map(out.show, head)), out.width, between)
    ]
    for block in blocks:
        lines += [Text(""), *_block(block, names, margin, out)]
    lines.append(Text(""))
    for note in (*_verdicts(study), *_notes(study)):
        for place, line in enumerate(textwrap.wrap(out.show(note), max(out.width - 2, 20), break_long_words=False)):
            lines.append(Text(("  " if place else "· " if out.unicode else "- ") + line, "dim"))
    return Group(*lines)


def _names(study: Study) -> list[str]:
    """Return the first column: its heading, then the shift where it begins, and the severity."""
    width = max(len(at.shift) for at in study.conditions)
    names = [f"{'shift':<{width}} "]
    for shift, group in groupby(study.conditions, key=lambda at: at.shift):
        severities = [str(at.severity or "") for at in group]
        names += [f"{shift if not place else '':<{width}} {severity}" for place, severity in enumerate(severities)]
    return names


def _groups(study: Study, out: Terminal, room: int) -> list[_Group]:
    """Return what there is to show; accuracies lose their intervals where even their own group would be too wide."""
    ece = _percent(study, lambda found: found.ece)
    flips = _percent(study, lambda found: found.flips)
    accuracy = _Group("accuracy, %", _accuracies(study, out, intervals=True))
    if accuracy.width > room:
        accuracy = _Group("accuracy, %", _accuracies(study, out, intervals=False))
    plain = [_Group("ECE, %", [_column(study, i, ece, out) for i in range(len(study.stats))])]
    plain.append(_Group("changed by mates, %", [_column(study, i, flips, out) for i in range(len(study.stats))]))
    return [accuracy, *plain]


def _accuracies(study: Study, out: Terminal, *, intervals: bool) -> list[_Column]:
    """Return a column for each choice: accuracy in percent, a star where it clearly differs from running."""
    rows = [at.found for at in study.conditions]
    halves = [half for row in rows for found in row if (half := found.accuracy.half) < math.inf]
    decimals = decimals_for([], [100 * half for half in halves]) if any(halves) else 1
    width = max((len(number(100 * half, decimals)) for half in halves), default=0)
    columns = []
    for place, header in enumerate(study.stats):
        cells, styles = [], []
        for row in rows:
            found = row[place]
            half = found.accuracy.half
            text = number(100 * found.accuracy.value, decimals)
            if intervals:  # none of samples that are all right or all wrong: their spread says nothing
                interval = (
                    out.show("±") + " " + number(100 * half, decimals).rjust(width) if 0 < half < math.inf else ""
                )
                text += " " + f"{interval:<{len(out.show('±')) + 1 + width}}"
            clear = found.difference is not None and found.difference.excludes(0)
            cells.append(text + ("*" if clear else " "))
            values = [other.accuracy.value for other in row]
            best = found.accuracy.value == max(values) > min(values)
            colour = "" if not clear or found.difference is None else "green" if found.difference.value > 0 else "red"
            styles.append(f"{'bold ' if best else ''}{colour}".strip())
        columns.append(_fitted(header + " ", cells, styles))
    return columns


def _percent(study: Study, value: Callable[[Robustness], float | None]) -> list[list[str]]:
    """Return a share of every row and choice, in percent with one decimal."""
    table = [[value(found) for found in at.found] for at in study.conditions]
    return [[MISSING if share is None else number(100 * share, 1) for share in row] for row in table]


def _column(study: Study, place: int, table: Sequence[Sequence[str]], out: Terminal) -> _Column:
    return _fitted(study.stats[place], [out.show(row[place]) for row in table], [""] * len(table))


def _fitted(header: str, cells: list[str], styles: list[str]) -> _Column:
    return _Column(header, cells, styles, max(map(cell_len, [header, *cells])))


def _blocks(groups: Sequence[_Group], room: int) -> list[list[_Group]]:
    """Put groups side by side as long as there is room; one that alone is too wide is cut into its columns."""
    blocks: list[list[_Group]] = []
    for group in groups:
        pieces = [group] if group.width <= room else [_Group(group.title, [column]) for column in group.columns]
        for piece in pieces:
            if blocks and sum(other.width + GROUP_GAP for other in blocks[-1]) + piece.width <= room:
                blocks[-1].append(piece)
            else:
                blocks.append([piece])
    return blocks


def _block(groups: Sequence[_Group], names: Sequence[str], margin: int, out: Terminal) -> Iterator[Text]:
    gap = " " * GROUP_GAP
    yield Text(" " * margin + gap.join(f"{group.title:<{group.width}}" for group in groups).rstrip(), "bold")
    for line, name in enumerate(names):
        text = Text(no_wrap=True).append(f"{name:<{margin}}", "" if line else "dim")
        for place, group in enumerate(groups):
            text.append(gap if place else "")
            used = sum(column.width + 1 for column in group.columns) - 1
            for column in group.columns:
                cell, style = (column.cells[line - 1], column.styles[line - 1]) if line else (column.header, "dim")
                text.append(" " * (column.width - cell_len(cell) + (column is not group.columns[0])))
                text.append(cell, style)
            text.append(" " * (group.width - used))
        text.rstrip()
        yield text
        if not line:
            width = margin + sum(group.width + GROUP_GAP for group in groups) - GROUP_GAP
            yield Text(("─" if out.unicode else "-") * width, "dim")


# ---------------------------------------------------------------- in words


def _verdicts(study: Study) -> Iterator[str]:
    """Say of each choice where it clearly helps against running, and where it clearly hurts."""
    for place, stats in enumerate(study.stats):
        if stats == "running":
            continue
        pairs = [(at, at.found[place].difference) for at in study.conditions]
        clear = [(at, difference) for at, difference in pairs if difference and difference.excludes(0)]
        clear.sort(key=lambda pair: pair[1].value)
        worse = [pair for pair in clear if pair[1].value < 0]
        better = [pair for pair in reversed(clear) if pair[1].value > 0]
        if clear:
            yield f"{stats}: clearly better than running {_where(better)}; clearly worse {_where(worse)}"
        else:
            yield f"{stats}: no clear difference to running in any row"


def _where(found: Sequence[tuple[Condition, Interval]]) -> str:
    if not found:
        return "nowhere"
    at, difference = found[0]
    place = f"under {at.shift} {at.severity}" if at.severity else "on the images as they are"
    amount = f"{number(100 * difference.value, 1, signed=True)} ± {number(100 * difference.half, 1)} points"
    return f"in {len(found)} row{'s' if len(found) > 1 else ''}, most {place} ({amount})"


def _notes(study: Study) -> Iterator[str]:
    """Say what the figures are of."""
    if not study.keeps_statistics:
        yield (
            "no layer keeps running statistics, so there is nothing to choose: running, mixed, batch and test are one "
            "and the same, shown as running"
        )
    elif study.stats != ["running"]:
        yield "*: the 95% interval of the paired difference to running excludes 0, not corrected for the number of rows"
    if "mixed" in study.stats:
        count = f"{study.prior:g} sample{'' if study.prior == 1 else 's'}"
        yield f"mixed: the running statistics count for {count} (eval.prior), the batch for its own"
    said = ["changed by mates: predictions that are others in batches of other samples"]
    said += ["of test: between statistics of two random halves of the set"] if "test" in study.stats else []
    few = any(found.flips is None for at in study.conditions for found in at.found)
    yield "; ".join([*said, f"{MISSING}: too few samples for that"] if few else said)
    shifts = {shift: list(group) for shift, group in groupby(study.conditions[1:], key=lambda at: at.shift)}
    fewer = {shift: [f"{at.found[0].samples:,}" for at in group] for shift, group in shifts.items()}
    less = [f"; {shift} leaves {', '.join(n)}" for shift, n in fewer.items() if set(n) != {f"{study.samples:,}"}]
    yield f"n = {study.samples:,} of {study.available:,} test images (eval.probe_samples=N takes others){''.join(less)}"
    if shifts:
        amounts = [
            f"{shift} {', '.join(f'{at.amount:g}' for at in group)} {group[0].unit}" for shift, group in shifts.items()
        ]
        yield f"severities: {'; '.join(amounts)}"
    yield "ECE: calibration error in 15 bins of confidence; --format json, csv: also loss, mate noise and intervals"
