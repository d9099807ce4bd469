"""A bench in the terminal: while it runs the ratios as they narrow, at the end a table a section."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from bnlab.compare.notes import finest
from bnlab.errors import count_of
from bnlab.report.console import Terminal
from bnlab.report.curves import chart
from bnlab.report.display import Display
from bnlab.report.figures import Cell, interval_cells, number, significant
from bnlab.report.table import Column, bullets, draw, joined

if TYPE_CHECKING:
    from bnlab.bench.engine import ArmTime, ContestTime
    from bnlab.bench.pairing import Blocks
    from bnlab.bench.profiling import SectionProfile
    from bnlab.bench.scaling import Growth
    from bnlab.interval import Interval

_MEGA = 1e6
_LONGEST_NAME = 12  # of a baseline in the title of a column


def bench_table(times: ContestTime, out: Terminal) -> Group:
    """Return one section, as wide as the console."""
    drawn = draw(_columns(times), out)
    heading = joined([times.title or "one training step", *times.setting], out, "bold")
    notes = bullets([*_notes(times), *left_out_note(drawn.left_out)], out)
    return Group(*heading, Text(""), *drawn.lines, Text(""), *notes)


def scaling_table(size: str, levels: Sequence[tuple[str, float]], times: Sequence[ContestTime], out: Terminal) -> Group:
    """Return the ratios of every contender against a growing size, as a table and a chart."""
    baseline = times[0].arms[0].label
    labels = list(dict.fromkeys(arm.label for each in times for arm in each.arms if arm.label != baseline))
    ratios = {label: [_ratio_of(each, label) for each in times] for label in labels}
    columns = [Column("norm", labels, left=True, is_name=True)]
    for place, (title, _) in enumerate(levels):
        cells = [Cell("") if (r := ratios[label][place]) is None else _ratio_cell(r) for label in labels]
        short = [replace(cell, interval="") for cell in cells]
        columns.append(Column(f"{size} {title}", cells, short=short))
    heading = joined([f"step of each strategy over that of {baseline}, by {size}"], out, "bold")
    curves = {
        label: (
            [math.log2(level) for _, level in levels],
            [math.nan if r is None else r.value for r in ratios[label]],
        )
        for label in labels
    }
    shown = chart("", curves, "linear", min(out.width, 100), out.unicode and out.coloured, over=f"log2 of the {size}")
    return Group(*heading, Text(""), *draw(columns, out, split=True).lines, Text(""), *shown)


def growth_table(growths: Sequence[Growth], out: Terminal) -> Group:
    """Return the step of each strategy by the size of the training set, and the exponent of its epochs."""
    columns = [Column("norm", [growth.label for growth in growths], left=True, is_name=True)]
    for size in growths[0].step_ms:
        columns.append(Column(f"{size:,}", [significant(growth.step_ms.get(size)) for growth in growths]))
    exponents = [growth.exponent for growth in growths]
    columns.append(Column("p", interval_cells(exponents, 1.0, signed=False, least=2)))
    heading = joined(["ms a step by images in the training set; an epoch takes images^p"], out, "bold")
    notes = bullets([f"p is the mean of {exponents[0].n} blocks, each fitted over all sizes on logarithms."], out)
    return Group(*heading, Text(""), *draw(columns, out, split=True).lines, Text(""), *notes)


def profile_table(found: SectionProfile, out: Terminal) -> Group:
    """Return where the time in the operations of a step goes, in percent by group."""
    arms = found.arms
    columns = [
        Column("arm", [arm.label for arm in arms], left=True, is_name=True),
        Column("operations ms", [significant(arm.ms) for arm in arms]),
    ]
    for group in arms[0].shares:
        shares = [arm.shares[group] for arm in arms]
        cells = [Cell(f"{100 * s.value:.1f}", f"({100 * (s.low or 0):.1f}–{100 * (s.high or 0):.1f})") for s in shares]
        short = [replace(cell, interval="") for cell in cells]
        columns.append(Column(f"{group} %", cells, short=short))
    heading = joined([found.title or "one training step", *found.setting], out, "bold")
    notes = [
        f"Shares of the time in the operations of {len(arms[0].by_step['norm_share'])} steps under torch's profiler, "
        "which itself takes time between them; bnlab bench without --profile tells how long a step is.",
        "norm: statistics, normalization and what follows from them; conv and linear: forward and backward.",
    ]
    return Group(*heading, Text(""), *draw(columns, out, split=True).lines, Text(""), *bullets(notes, out))


def left_out_note(columns: Sequence[Column]) -> list[str]:
    """Return a sentence on the columns that are not shown, if any."""
    titles = ", ".join(column.title for column in columns)
    return [f"left out for width: {titles} (a wider terminal or --format shows them)"] if titles else []


def _ratio_of(times: ContestTime, label: str) -> Interval | None:
    return next((arm.ratio for arm in times.arms if arm.label == label), None)


def ratio_text(ratio: Interval) -> str:
    """Return a ratio with its interval: `1.128 (1.115–1.136)`."""
    return str(_ratio_cell(ratio))


def _ratio_cell(ratio: Interval) -> Cell:
    return Cell(f"{ratio.value:.3f}", f"({ratio.low:.3f}–{ratio.high:.3f})")


def _columns(times: ContestTime) -> list[Column]:
    arms = times.arms
    base = arms[0].label

    def column(title: str, text: Callable[[ArmTime], str], rank: int) -> Column:
        return Column(title, [text(arm) for arm in arms], rank=rank)

    phases = [
        column("forward ms", lambda arm: significant(arm.forward_ms), 3),
        column("backward ms", lambda arm: significant(arm.backward_ms), 3),
        column("optimizer ms", lambda arm: significant(arm.optimizer_ms), 4),
    ]
    ratios = [Cell("", "baseline"), *(_ratio_cell(arm.ratio) for arm in arms[1:])]
    return [
        Column("arm", [arm.label for arm in arms], left=True, is_name=True),
        column("step ms", lambda arm: significant(arm.step_ms), 0),
        Column(
            f"vs {base if len(base) <= _LONGEST_NAME else 'baseline'}",
            ratios,
            styles=["dim", *(_style(arm.ratio, times.control) for arm in arms[1:])],
        ),
        column("floor", lambda arm: "" if arm is arms[0] else number(arm.floor, 3), 1),
        *(phases if any(arm.forward_ms is not None for arm in arms) else []),
        column("images/s", lambda arm: number(arm.images_per_second, 0), 2),
        column("peak MB", lambda arm: number(arm.traffic.peak / _MEGA, 1), 5),
        column("moved MB", lambda arm: number(arm.traffic.moved / _MEGA, 0), 6),
    ]


def _style(ratio: Interval, control: Interval) -> str:
    """Green or red where the interval lies beyond that of the baseline's second copy."""
    return "red" if ratio.is_above(control.high) else "green" if ratio.is_below(control.low) else ""


def _notes(times: ContestTime) -> Iterator[str]:
    widest = max((arm.ratio.relative_half for arm in times.arms[1:]), default=0.0)
    why = (
        "the requested precision was reached"
        if times.stopped_by == "precision"
        else "the budget (bench.seconds) was spent"
    )
    width = f": the widest interval is ±{100 * widest:.1f} % of its ratio" if len(times.arms) > 1 else ""
    yield (
        f"{count_of(times.rounds, 'round')} in {times.seconds:.0f} s, one step of each in turn, all arms made anew "
        f"{times.blocks} times; {why}{width}."
    )
    doubt = "" if not times.control.excludes(1) else ", which does not contain 1: something favoured one of them"
    yield (
        f"A second copy of {times.arms[0].label} took {ratio_text(times.control)} of the first{doubt}. "
        f"Differences finer than {finest([(times.control.low, times.control.high)])} mean nothing."
    )
    yield (
        "floor: the ratio that the bytes moved beyond the baseline's would give by themselves at "
        f"{times.bandwidth / 1e9:.0f} GB/s, measured by copying the widest normalized activation."
    )
    bound = [f"{arm.label} ({arm.host_ms / arm.step_ms:.0%})" for arm in times.arms if arm.host_ms and arm.launch_bound]
    if bound:
        way_out = "" if times.graph else "; bench.graph=true times them without launches"
        yield (
            f"Bound by launches: {', '.join(bound)}. The host takes so much of the step to issue it that the device "
            f"waits for the host, and the ratios are of launches more than of kernels{way_out}."
        )
    if times.graph:
        yield "Each step was replayed from a CUDA graph; its phases cannot be told apart."
    yield from times.left_out


# ---------------------------------------------------------------- while it runs


@contextmanager
def benching(out: Terminal) -> Iterator[Callable[[str, Blocks[str], float], None]]:
    """Yield what is told of every round, with the seconds left at most: it shows the ratios as they narrow."""
    with Display(out) as display:
        yield lambda title, turns, left: display.show(
            lambda: round_text(title, turns.rounds, left) + _widest(turns),
            lambda: Text("\n".join(map(out.show, [round_text(title, turns.rounds, left), *_ratios(turns)])), "dim"),
            part=title,
        )


def round_text(title: str, rounds: int, left: float) -> str:
    """Return how far a bench is."""
    return f"{title or 'bench'}: round {rounds}, at most {max(left, 0):.0f} s left"


def _ratios(turns: Blocks[str]) -> Iterator[str]:
    width = max(map(len, turns.figures))
    for name in turns.figures if turns.count > 1 else ():
        if name != turns.reference:
            ratio = turns.ratio(name)
            yield f"  {name:<{width}}  {ratio.value:.3f} ±{100 * ratio.relative_half:4.1f} %"


def _widest(turns: Blocks[str]) -> str:
    if turns.count < 2:
        return ""
    widths = [turns.ratio(name).relative_half for name in turns.figures if name != turns.reference]
    return f", widest interval ±{100 * max(widths, default=0.0):.1f} %"
