"""Shifts in a terminal: one row a shift and severity, a column for each choice of statistics; for pages and programs.

Accuracy, calibration and dependence on batch-mates stand side by side where there is room, else below each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from bnlab.errors import count_of
from bnlab.record.latest import name_of
from bnlab.report.console import Terminal
from bnlab.report.figures import MISSING, interval_cells, number
from bnlab.report.panels import Panel, Picture, Series
from bnlab.report.rows import Row
from bnlab.report.sheet import Plate, Sheet
from bnlab.report.table import Column, bullets, draw, joined

if TYPE_CHECKING:
    from bnlab.experiment.shift_study import Study
    from bnlab.interval import Interval
    from bnlab.measure.robustness import Condition, Robustness


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
    return head, [_tidy(at, row) for at in study.conditions for row in at.found]


def _tidy(at: Condition, measured: Robustness) -> Row:
    row: dict[str, Any] = {"shift": at.shift, "severity": at.severity, "amount": at.amount, "unit": at.unit or None}
    row |= {"stats": measured.stats, "samples": measured.samples}
    for name in ("accuracy", "difference", "loss"):
        interval = getattr(measured, name)
        row[name] = interval.value if interval else None
        row[f"{name}_low"] = interval.low if interval else None
        row[f"{name}_high"] = interval.high if interval else None
    return row | {"ece": measured.ece, "flips": measured.flips, "mate_noise": measured.mate_noise}


# ---------------------------------------------------------------- the table


def shift_table(study: Study, out: Terminal) -> Group:
    """Return the table and what it says in words, as wide as the console."""
    about = [study.label, *_about(study)]
    width = max(len(at.shift) for at in study.conditions)
    names = [f"{at.shift:<{width}} {at.severity or ''}" for at in study.conditions]
    table = draw(_columns(study, names), out, split=True).lines
    answer = [line for said in _answer(study) for line in joined([said], out, "bold")]
    notes = bullets(list(_notes(study)), out)
    return Group(*joined(about, out, "dim"), Text(""), *answer, Text(""), *table, Text(""), *notes)


def _about(study: Study) -> list[str]:
    unread = [f"keeps something in training that bnlab does not read: {study.unread}"] if study.unread else []
    return [*unread, f"{study.samples:,} test images under shifts", f"batches of {study.batch_size}"]


def _columns(study: Study, names: Sequence[str]) -> list[Column]:
    return [
        Column("shift", names, left=True, is_name=True),
        *_accuracies(study),
        *_shares(study, "ECE, %", lambda measured: measured.ece),
        *_shares(study, "changed by mates, %", lambda measured: measured.flips),
    ]


# ---------------------------------------------------------------- as a sheet


def shift_sheet(study: Study) -> Sheet:
    """Return what a page shows: accuracy over severity by choice of statistics, a panel a shift, and the table."""
    plain, panels = study.conditions[0], []
    for shift, group in groupby(study.conditions[1:], key=lambda at: at.shift):
        shown = [plain, *group]
        places = [float(at.severity) for at in shown]
        series = [
            Series(stats, [at.found[place].accuracy for at in shown], place, places)
            for place, stats in enumerate(study.stats)
        ]
        panels.append(Panel(f"{shift}: accuracy, %", series, "severity", factor=100.0))
    pairs = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    names = [[panel.title.partition(":")[0] for panel in pair] for pair in pairs]
    remark = "by the statistics of evaluation; severity 0: the images as they are; band: 95% interval over images"
    return Sheet(
        f"What do shifted test images do to {name_of(Path(study.label))}, by the statistics it is evaluated with?",
        _answer(study),
        _about(study),
        _columns(study, [f"{at.shift} {at.severity or ''}".strip() for at in study.conditions]),
        ["±: 95% interval over images"],
        [Plate(f"Under {' and '.join(its)}", Picture([pair], remark)) for its, pair in zip(names, pairs, strict=True)],
        list(_notes(study)),
    )


def _answer(study: Study) -> list[str]:
    return list(_verdicts(study)) or [_one_choice(study)]


def _one_choice(study: Study) -> str:
    """Say how the accuracy of the only choice ends, from the images as they are to the worst shift."""
    worst = min(study.conditions, key=lambda at: at.found[0].accuracy.value)
    plain, least = (number(100 * at.found[0].accuracy.value, 1) for at in (study.conditions[0], worst))
    return f"{plain} % of the images as they are, {least} % under {worst.shift} {worst.severity or ''}".rstrip()


def _accuracies(study: Study) -> Iterator[Column]:
    """Yield a column for each choice: accuracy in percent, a star where it clearly differs from running."""
    cells_of = iter(interval_cells([row.accuracy for at in study.conditions for row in at.found], 100))
    figures = [[next(cells_of) for _ in at.found] for at in study.conditions]
    for place, title in enumerate(study.stats):
        cells, short, styles = [], [], []
        for at, own in zip(study.conditions, figures, strict=True):
            row = at.found[place]
            clear = row.difference is not None and row.difference.excludes(0)
            star = "*" if clear else " "
            cells.append(replace(own[place], interval=own[place].interval + star))
            short.append(replace(own[place], interval=star))
            values = [other.accuracy.value for other in at.found]
            best = row.accuracy.value == max(values) > min(values)
            colour = "" if not clear or row.difference is None else "green" if row.difference.value > 0 else "red"
            styles.append(f"{'bold ' if best else ''}{colour}".strip())
        yield Column(title, cells, short=short, group="accuracy, %", styles=styles)


def _shares(study: Study, group: str, share_of: Callable[[Robustness], float | None]) -> Iterator[Column]:
    """Yield a column for each choice: a share in percent with one decimal."""
    for place, title in enumerate(study.stats):
        shares = [share_of(at.found[place]) for at in study.conditions]
        yield Column(title, [MISSING if s is None else number(100 * s, 1) for s in shares], group=group)


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


def _where(rows: Sequence[tuple[Condition, Interval]]) -> str:
    if not rows:
        return "nowhere"
    at, difference = rows[0]
    place = f"under {at.shift} {at.severity}" if at.severity else "on the images as they are"
    amount = f"{number(100 * difference.value, 1, signed=True)} ± {number(100 * difference.half, 1)} points"
    return f"in {count_of(len(rows), 'row')}, most {place} ({amount})"


def _notes(study: Study) -> Iterator[str]:
    """Say what the figures are of."""
    if study.unread:
        yield f"what bnlab does not read stays as it is, whatever statistics are chosen: {study.unread}"
    if not study.keeps_statistics and study.unread:
        yield "no layer that it reads keeps running statistics: there is no choice, running is the model as it is"
    elif not study.keeps_statistics:
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
    few = any(row.flips is None for at in study.conditions for row in at.found)
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
