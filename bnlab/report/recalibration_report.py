"""What recalibrating a model changed: two tables and a sentence in a terminal, or one row a figure for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from bnlab.errors import count_of
from bnlab.report.bars import bar_column, bars
from bnlab.report.console import Terminal
from bnlab.report.figures import interval_cells, interval_text, percent, significant, small
from bnlab.report.table import Column, draw, joined

if TYPE_CHECKING:
    from bnlab.measure.by_layer import LayerGap
    from bnlab.measure.recalibration import Change, Recalibration
    from bnlab.report.rows import Row


@dataclass(frozen=True)
class Recalibrated:
    """A recalibration with what a reader must know above it."""

    label: str
    about: tuple[str, ...]  # data, model, normalization
    file: str  # the new one
    result: Recalibration


_HOW = {
    "population": "population: layer after layer, as of one batch of all samples",
    "precise": "precise: in one pass with training behaviour",
}
_GAPS = {"mean_z": "largest mean z", "log_std_ratio": "largest log ratio"}


# ---------------------------------------------------------------- in a terminal


def recalibration_tables(report: Recalibrated, out: Terminal) -> Group:
    """Return the whole report, as wide as the console."""
    result = report.result
    over = f"over {result.samples:,} of {result.available:,} training samples"
    lines = joined([report.label, *report.about], out, "bold")
    lines += joined(
        [_HOW[result.stats], over, f"{count_of(len(result.gaps_before), 'layer')} recalibrated"], out, "dim"
    )
    lines += joined([f"new file: {report.file}"], out, "dim")
    lines += [Text(""), *joined([in_words(result)], out, "bold")]
    about = ["evaluation mode, same weights and samples", "±: 95 % interval", *_SIGNS]
    lines += [Text(""), Text("Before and after", "bold"), *joined(about, out, "dim"), *_changes(result, out)]
    about = [
        f"evaluated with the statistics of the first training samples; points and nats: less those with all "
        f"{result.samples:,}",
    ]
    lines += [Text(""), Text("How many samples it takes", "bold"), *joined(about, out, "dim"), *_curve(result, out)]
    return Group(*lines)


_SIGNS = (
    "flips: predictions that change",
    "mean z: |running mean off| / sigma",
    "log ratio: log(running sigma / sigma), from the new statistics, median of a layer's channels",
)


def _changes(result: Recalibration, out: Terminal) -> list[Text]:
    names, rows = list[str](), list[list[str]]()
    for change in result.changes:
        names += [f"{change.split} accuracy, %", f"{change.split} loss, nats"]
        rows.append(
            [
                interval_text(change.accuracy_before, 100, least=2),
                interval_text(change.accuracy_after, 100, least=2),
                interval_text(change.accuracy, 100, signed=True, least=2),
                interval_text(change.flips, 100, least=2),
            ]
        )
        losses = (interval_text(change.loss_before), interval_text(change.loss_after))
        rows.append([*losses, interval_text(change.loss, signed=True), ""])
    for metric, name in _GAPS.items():
        before, after = (farthest(gaps, metric) for gaps in (result.gaps_before, result.gaps_after))
        names.append(name)
        signed = metric == "log_std_ratio"
        rows.append([small(before, signed=signed), small(after, signed=signed), "", ""])
    columns = [Column("", names, left=True)]
    for place, title in enumerate(("before", "after", "difference", "flips %")):
        columns.append(Column(title, [row[place] for row in rows]))
    return draw(columns, out, above={2 * len(result.changes): ""}).lines


def farthest(gaps: Sequence[LayerGap], metric: str) -> float:
    """Return the value of the layer whose `metric` lies farthest from 0."""
    return float(max((getattr(gap, metric) for gap in gaps), key=abs))


def _curve(result: Recalibration, out: Terminal) -> list[Text]:
    points = result.curve
    columns = [Column("samples", [f"{point.samples:,}" for point in points])]
    splits = [result.judged_on, *(split for split in points[0].levels if split != result.judged_on)]
    for rank, split in enumerate(splits):
        levels = [point.levels[split] for point in points]
        columns += [
            Column(f"{split} accuracy %", [percent(level.accuracy.value) for level in levels], rank=rank + 3),
            Column(
                f"{split} points",
                interval_cells([level.accuracy_off for level in levels], 100, signed=True, least=2),
                rank=rank,
            ),
            Column(f"{split} loss", [significant(level.loss.value) for level in levels], rank=rank + 3),
            Column(f"{split} nats", interval_cells([level.loss_off for level in levels], signed=True), rank=rank),
        ]
    losses = [abs(point.levels[result.judged_on].loss_off.value) for point in points]
    columns.append(bar_column(f"{result.judged_on} nats", lambda width: bars(losses, width, out), 16, 6))
    marked = next(number for number, point in enumerate(points) if point.samples == result.enough)
    return draw(columns, out, styles={marked: "bold"}).lines


# ---------------------------------------------------------------- in words


def in_words(result: Recalibration) -> str:
    """Return how many samples were enough, what that came to on the last split, and whether it was for the better."""
    enough = [] if is_worse(result.changes) else [_enough(result)]
    return " ".join([*enough, _came_to(result.changes[-1]), _better_or_worse(result.changes)])


def _enough(result: Recalibration) -> str:
    if result.enough < result.samples:
        fewest = ", the fewest tried," if result.enough == result.curve[0].samples else ""
        return f"{result.enough:,} of {result.samples:,} samples{fewest} were enough, judged on {result.judged_on}."
    if len(result.curve) == 1:
        return f"Fewer than {result.samples:,} samples were not tried."
    before = result.curve[-2]
    off = before.levels[result.judged_on]
    figures = f"{100 * off.accuracy_off.value:+.2f} points and {small(off.loss_off.value, signed=True)} nats"
    return f"All {result.samples:,} samples were needed: {before.samples:,} are {figures} off on {result.judged_on}."


def _came_to(change: Change) -> str:
    accuracy = f"{percent(change.accuracy_before.value)} → {percent(change.accuracy_after.value)} %"
    points = interval_text(change.accuracy, 100, signed=True, least=2)
    loss = f"{significant(change.loss_before.value)} → {significant(change.loss_after.value)} nats"
    nats = interval_text(change.loss, signed=True)
    return f"Accuracy on {change.split} {accuracy} ({points} points), loss {loss} ({nats})."


def is_worse(changes: Sequence[Change]) -> bool:
    """Return whether all that can be told from 0 is for the worse, and not small."""
    gains = [gain for change in changes for gain in change.clear.values()]
    return bool(gains) and max(gains) < 0 and not all(change.small for change in changes)


def _better_or_worse(changes: Sequence[Change]) -> str:
    clear = [(f"{what} on {change.split}", gain) for change in changes for what, gain in change.clear.items()]
    if not clear:
        return "No difference can be told from 0: the old statistics do as well."
    if all(change.small for change in changes):
        return "The differences are small: the old statistics do as well."
    better, worse = ([name for name, gain in clear if (gain > 0) is wanted] for wanted in (True, False))
    if worse and better:
        return f"Better: {', '.join(better)}; worse: {', '.join(worse)}."
    if worse:
        return f"Recalibration made it worse ({', '.join(worse)}): keep the old statistics."
    return f"Recalibration made it better ({', '.join(better)})."


# ---------------------------------------------------------------- as rows


def recalibration_head(report: Recalibrated) -> dict[str, Any]:
    """Return what holds for all rows."""
    result = report.result
    return {
        "label": report.label,
        "about": ", ".join(report.about),
        "file": report.file,
        "stats": result.stats,
        "samples": result.samples,
        "available": result.available,
        "judged_on": result.judged_on,
        "enough": result.enough,
        "verdict": in_words(result),
    }


def recalibration_rows(report: Recalibrated) -> list[Row]:
    """Return one row a figure: table, split, name, samples, metric, value, low, high, n; accuracies are shares."""
    result = report.result
    rows: list[Row] = []
    for change in result.changes:
        for metric in ("accuracy_before", "accuracy_after", "accuracy", "loss_before", "loss_after", "loss", "flips"):
            rows.append(_row("change", change.split, "", result.samples, metric, getattr(change, metric)))
    for when, gaps in (("before", result.gaps_before), ("after", result.gaps_after)):
        for gap in gaps:
            for metric in ("mean_z", "mean_z_max", "log_std_ratio", "log_std_ratio_max"):
                rows.append(_row(f"layer {when}", "train", gap.name, result.samples, metric, getattr(gap, metric)))
    for point in result.curve:
        for split, level in point.levels.items():
            for metric in ("accuracy", "loss", "accuracy_off", "loss_off"):
                rows.append(_row("curve", split, "", point.samples, metric, getattr(level, metric)))
    return rows


def _row(where: str, split: str, name: str, samples: int, metric: str, value: Any) -> Row:
    keys: dict[str, Any] = {"table": where, "split": split, "name": name, "samples": samples, "metric": metric}
    if hasattr(value, "low"):
        return keys | {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
    return keys | {"value": value, "low": None, "high": None, "n": None}
