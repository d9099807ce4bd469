"""What recalibrating a model changed: two tables and a sentence in a terminal, or one row a figure for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from bnlab.compare.notes import count_of
from bnlab.report.columns import Column
from bnlab.report.console import Terminal, clean
from bnlab.report.figures import significant
from bnlab.report.probe_tables import bars, drawn, estimates, joined, percent, small, table

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
    found: Recalibration


_HOW = {
    "population": "population: layer after layer, as of one batch of all samples",
    "precise": "precise: in one pass with training behaviour",
}
_GAPS = {"mean_z": "largest mean z", "log_std_ratio": "largest log ratio"}


# ---------------------------------------------------------------- in a terminal


def recalibration_tables(report: Recalibrated, out: Terminal) -> Group:
    """Return the whole report, as wide as the console."""
    found = report.found
    over = f"over {found.samples:,} of {found.available:,} training samples"
    lines = joined([clean(report.label), *map(clean, report.about)], out, "bold")
    lines += joined([_HOW[found.stats], over, f"{count_of(len(found.gaps_before), 'layer')} recalibrated"], out, "dim")
    lines += joined([f"new file: {clean(report.file)}"], out, "dim")
    about = ["evaluation mode, same weights and samples", "±: 95 % interval", *_SIGNS]
    lines += [Text(""), Text("Before and after", "bold"), *joined(about, out, "dim"), *_changes(found, out)]
    about = [
        f"evaluated with the statistics of the first training samples; points and nats: less those with all "
        f"{found.samples:,}",
    ]
    lines += [Text(""), Text("How many samples it takes", "bold"), *joined(about, out, "dim"), *_curve(found, out)]
    lines += [Text(""), *joined([in_words(found)], out, "bold")]
    return Group(*lines)


_SIGNS = (
    "flips: predictions that change",
    "mean z: |running mean off| / sigma",
    "log ratio: log(running sigma / sigma), from the new statistics, median of a layer's channels",
)


def _changes(found: Recalibration, out: Terminal) -> list[Text]:
    names, rows = list[str](), list[list[str]]()
    for change in found.changes:
        names += [f"{change.split} accuracy, %", f"{change.split} loss, nats"]
        rows.append(
            _flat(
                estimates([change.accuracy_before], 100, least=2),
                estimates([change.accuracy_after], 100, least=2),
                estimates([change.accuracy], 100, signed=True, least=2),
                estimates([change.flips], 100, least=2),
            )
        )
        losses = (estimates([change.loss_before]), estimates([change.loss_after]))
        rows.append(_flat(*losses, estimates([change.loss], signed=True), [""]))
    for metric, name in _GAPS.items():
        before, after = (farthest(gaps, metric) for gaps in (found.gaps_before, found.gaps_after))
        names.append(name)
        signed = metric == "log_std_ratio"
        rows.append([small(before, signed=signed), small(after, signed=signed), "", ""])
    columns = [Column("", names, left=True)]
    for place, title in enumerate(("before", "after", "difference", "flips %")):
        columns.append(Column(title, [row[place] for row in rows]))
    return table(columns, out, rules=[2 * len(found.changes)])


def _flat(*groups: Sequence[str]) -> list[str]:
    return [" ".join(cell.split()) for cells in groups for cell in cells]


def farthest(gaps: Sequence[LayerGap], metric: str) -> float:
    """Return the value of the layer whose `metric` lies farthest from 0."""
    return float(max((getattr(gap, metric) for gap in gaps), key=abs))


def _curve(found: Recalibration, out: Terminal) -> list[Text]:
    points = found.curve
    columns = [Column("samples", [f"{point.samples:,}" for point in points])]
    splits = [found.judged_on, *(split for split in points[0].levels if split != found.judged_on)]
    for rank, split in enumerate(splits):
        levels = [point.levels[split] for point in points]
        columns += [
            Column(f"{split} accuracy %", [percent(level.accuracy.value) for level in levels], rank=rank + 3),
            Column(
                f"{split} points",
                estimates([level.accuracy_off for level in levels], 100, signed=True, least=2),
                rank=rank,
            ),
            Column(f"{split} loss", [significant(level.loss.value) for level in levels], rank=rank + 3),
            Column(f"{split} nats", estimates([level.loss_off for level in levels], signed=True), rank=rank),
        ]
    losses = [abs(point.levels[found.judged_on].loss_off.value) for point in points]
    columns.append(drawn(lambda width: bars(losses, width, out), wide=16, narrow=6, title=f"{found.judged_on} nats"))
    marked = next(number for number, point in enumerate(points) if point.samples == found.enough)
    return table(columns, out, styles={marked: "bold"})


# ---------------------------------------------------------------- in words


def in_words(found: Recalibration) -> str:
    """Return how many samples were enough, what that came to on the last split, and whether it was for the better."""
    return " ".join([_enough(found), _came_to(found.changes[-1]), _better_or_worse(found.changes)])


def _enough(found: Recalibration) -> str:
    if found.enough < found.samples:
        return f"{found.enough:,} of {found.samples:,} samples were enough, judged on {found.judged_on}."
    if len(found.curve) == 1:
        return f"Fewer than {found.samples:,} samples were not tried."
    before = found.curve[-2]
    off = before.levels[found.judged_on]
    figures = f"{100 * off.accuracy_off.value:+.2f} points and {small(off.loss_off.value, signed=True)} nats"
    return f"All {found.samples:,} samples were needed: {before.samples:,} are {figures} off on {found.judged_on}."


def _came_to(change: Change) -> str:
    accuracy = f"{percent(change.accuracy_before.value)} → {percent(change.accuracy_after.value)} %"
    points = _flat(estimates([change.accuracy], 100, signed=True, least=2))[0]
    loss = f"{significant(change.loss_before.value)} → {significant(change.loss_after.value)} nats"
    nats = _flat(estimates([change.loss], signed=True))[0]
    return f"Accuracy on {change.split} {accuracy} ({points} points), loss {loss} ({nats})."


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
    found = report.found
    return {
        "label": report.label,
        "about": ", ".join(report.about),
        "file": report.file,
        "stats": found.stats,
        "samples": found.samples,
        "available": found.available,
        "judged_on": found.judged_on,
        "enough": found.enough,
        "verdict": in_words(found),
    }


def recalibration_rows(report: Recalibrated) -> list[Row]:
    """Return one row a figure: table, split, name, samples, metric, value, low, high, n; accuracies are shares."""
    found = report.found
    rows: list[Row] = []
    for change in found.changes:
        for metric in ("accuracy_before", "accuracy_after", "accuracy", "loss_before", "loss_after", "loss", "flips"):
            rows.append(_row("change", change.split, "", found.samples, metric, getattr(change, metric)))
    for when, gaps in (("before", found.gaps_before), ("after", found.gaps_after)):
        for gap in gaps:
            for metric in ("mean_z", "mean_z_max", "log_std_ratio", "log_std_ratio_max"):
                rows.append(_row(f"layer {when}", "train", gap.name, found.samples, metric, getattr(gap, metric)))
    for point in found.curve:
        for split, level in point.levels.items():
            for metric in ("accuracy", "loss", "accuracy_off", "loss_off"):
                rows.append(_row("curve", split, "", point.samples, metric, getattr(level, metric)))
    return rows


def _row(where: str, split: str, name: str, samples: int, metric: str, value: Any) -> Row:
    keys: dict[str, Any] = {"table": where, "split": split, "name": name, "samples": samples, "metric": metric}
    if hasattr(value, "low"):
        return keys | {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
    return keys | {"value": value, "low": None, "high": None, "n": None}
