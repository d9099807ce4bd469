"""What meters read in the runs of a claim: charts for its card, pictures for its page. No matplotlib here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.text import Text

from bnlab.claims.cells import arm_of
from bnlab.claims.claim import Claim
from bnlab.claims.evaluate import free_keys
from bnlab.claims.language import Quantity, quantities
from bnlab.claims.rule import parts_of
from bnlab.claims.verdict import ClaimVerdict
from bnlab.compare.comparison import compare
from bnlab.compare.result import Section
from bnlab.errors import ConfigError
from bnlab.mechanism import OF_LAYERS, is_read_by_a_meter
from bnlab.metrics import find_metric
from bnlab.record.latest import runs_folder
from bnlab.record.read import Run, read_runs
from bnlab.report import mechanism
from bnlab.report.console import Terminal
from bnlab.report.curves import BETWEEN, chart, in_two_columns
from bnlab.report.meters_report import HEIGHT
from bnlab.report.panels import Panel, Picture
from bnlab.report.table import shortened

WIDEST = 100  # columns of a chart
Cells = list[tuple[Quantity, list[str]]]  # with the keys that make no arm
Runs = Mapping[str, Run]  # by identity


@dataclass(frozen=True)
class Read:
    """What a metric of a meter is made of, over training, of the arms that a rule compares."""

    metric: str
    panel: Panel
    section: Section


def runs_of(pairs: Iterable[tuple[Claim, ClaimVerdict | None]]) -> Runs:
    """Return the runs behind those verdicts that rest on meters, as far as they are still there."""
    wanted = {identity for claim, verdict in pairs if verdict and _asked(claim) for identity in verdict.runs}
    if not wanted or not runs_folder().is_dir():
        return {}
    return {run.identity: run for run in read_runs([runs_folder()], wanted)[0]}


def _asked(claim: Claim) -> dict[str, list[Cells]]:
    """Return by metric of a meter the cells of each part of the rule that reads it."""
    asked: dict[str, list[Cells]] = {}
    for part in parts_of(claim.rule):
        free = [*free_keys(part.sentence.of), *part.best_of]
        cells: dict[str, Cells] = {}
        for quantity in quantities(part.sentence.of):
            if is_read_by_a_meter(find_metric(quantity.metric)):
                cells.setdefault(quantity.metric, []).append((quantity, free))
        for name, its in cells.items():
            asked.setdefault(name, []).append(its)
    return asked


def read_in(claim: Claim, verdict: ClaimVerdict | None, runs: Runs) -> list[Read]:
    """Return what a claim's rule asks of meters, a metric at a time; nothing where one of the runs is gone."""
    own = [runs[identity] for identity in dict.fromkeys(verdict.runs) if identity in runs] if verdict else []
    if verdict is None or not own or len(own) < len(set(verdict.runs)):
        return []
    try:
        return [read for name, parts in _asked(claim).items() for read in _of_metric(name, parts, own)]
    except ConfigError:  # the rule is another than that of the verdict
        return []


def _of_metric(name: str, parts: Sequence[Cells], runs: Sequence[Run]) -> Iterator[Read]:
    """Yield a metric of all arms where one key tells them apart, else of those of each part."""
    metric = find_metric(name)
    arms = [{run.identity: run for of, free in cells for run in arm_of(of, runs, free)} for cells in parts]
    shared = [" ".join(word for word in cells[0][0].cell if all(word in of.cell for of, _ in cells)) for cells in parts]
    together = {identity: run for each in arms for identity, run in each.items()}
    sections = compare((), of=list(together.values()), metrics=[name]).sections
    is_one = len(sections) == 1 and len(sections[0].changed) < 2
    for about, its in ({"": together} if is_one else dict(zip(shared, arms, strict=True))).items():
        for section in compare((), of=list(its.values()), metrics=[name]).sections:
            title = ", ".join(filter(None, (metric.title, metric.unit, about)))
            for panel in mechanism.metric_over_training(metric, section):
                yield Read(name, replace(panel, title=title), section)


def charts(claim: Claim, verdict: ClaimVerdict | None, out: Terminal) -> list[Text]:
    """Return a chart a figure, each after an empty line; two beside one another where they are narrow enough."""
    panels = [read.panel for read in read_in(claim, verdict, runs_of([(claim, verdict)]))]
    half = min((out.width - BETWEEN) // 2, WIDEST)
    drawn = [_chart(panel, half, out) for panel in panels]
    if len(panels) > 1 and all(line.cell_len <= half for lines in drawn for line in lines):
        return in_two_columns(drawn, half)
    return [line for panel in panels for line in (Text(""), *_chart(panel, min(out.width, WIDEST), out))]


def _chart(panel: Panel, room: int, out: Terminal) -> list[Text]:
    curves = {
        shortened(each.label, room // 2): (each.places, [value.value for value in each.values]) for each in panel.series
    }
    scale = " (log)" if panel.axis == "log" else ""
    braille = out.unicode and out.coloured
    return chart(panel.title + scale, curves, panel.axis, room, braille, factor=panel.factor, height=HEIGHT)


def pictures(claim: Claim, verdict: ClaimVerdict | None, runs: Runs) -> list[Picture]:
    """Return what a claim's rule asks of meters over training, and what of it is by depth or has bands."""
    reads = read_in(claim, verdict, runs)
    remark = "mean over seeds, band: its 95% interval"
    found = [Picture([[read.panel for read in reads]], remark) if reads else None]
    for read in reads:
        if read.metric in OF_LAYERS:
            found.append(mechanism.by_depth(read.section, OF_LAYERS[read.metric]))
        elif read.metric == "drift_index":
            found.append(mechanism.bands(read.section))
    return [picture for picture in found if picture]
