"""A bench in the terminal: while it runs the ratios as they narrow, at the end a table a section."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from bnlab.compare.notes import count_of
from bnlab.report.columns import Column, fold, in_ascii
from bnlab.report.console import Terminal, clean
from bnlab.report.curves import chart
from bnlab.report.figures import number, significant
from bnlab.report.table import NARROWEST, blocks, table_lines, wrapped

if TYPE_CHECKING:
    from bnlab.bench.engine import ArmTime, ContestTime
    from bnlab.bench.pairing import Turns
    from bnlab.interval import Interval

LINE_SECONDS = 10.0  # between two lines where no terminal is there to be redrawn
REDRAW_SECONDS = 0.5  # between two pictures in a terminal
FEW = 6  # rounds, below which there is no interval to show
_MEGA = 1e6
_LONGEST_NAME = 12  # of a baseline in the title of a column


def bench_table(found: ContestTime, out: Terminal) -> Group:
    """Return one section, as wide as the console."""
    columns = _columns(found)
    columns = columns if out.unicode else [in_ascii(column) for column in columns]
    kept, left_out = fold(columns, out.width)
    between = " · " if out.unicode else " | "
    heading = [out.show(part) for part in (found.title or "one training step", *found.setting)]
    lines: list[RenderableType] = [Text(line, "bold") for line in wrapped(heading, out.width, between)]
    if kept is None or out.width < NARROWEST:
        left_out, lines = [], [*lines, *blocks(columns, out.width)]
    else:
        lines += [Text(""), *table_lines(kept, "─" if out.unicode else "-"), Text("")]
    for note in _notes(found, [column.title for column in left_out]):
        for count, line in enumerate(textwrap.wrap(out.show(note), max(out.width - 2, 20), break_long_words=False)):
            lines.append(Text(("  " if count else "· " if out.unicode else "- ") + line, "dim"))
    return Group(*lines)


def scaling_table(size: str, levels: Sequence[tuple[str, float]], found: Sequence[ContestTime], out: Terminal) -> Group:
    """Return the ratios of every contender against a growing size, as a table and a chart."""
    baseline = found[0].arms[0].label
    labels = list(dict.fromkeys(arm.label for times in found for arm in times.arms if arm.label != baseline))
    ratios = {label: [_ratio_of(times, label) for times in found] for label in labels}
    columns = [Column("norm", [clean(label) for label in labels], left=True, is_arm=True)]
    for place, (title, _) in enumerate(levels):
        cells = ["" if (r := ratios[label][place]) is None else ratio_text(r) for label in labels]
        short = [cell.partition(" ")[0] for cell in cells]
        columns.append(Column(f"{size} {title}", cells, title, short=short, rank=1))
    columns = columns if out.unicode else [in_ascii(column) for column in columns]
    kept, left_out = fold(columns, out.width)
    heading = f"step of each strategy over that of {clean(baseline)}, by {size}"
    curves = {
        label: (
            [math.log2(level) for _, level in levels],
            [math.nan if r is None else r.value for r in ratios[label]],
        )
        for label in labels
    }
    drawn = chart("", curves, "linear", min(out.width, 100), out.unicode and out.coloured, over=f"log2 of the {size}")
    rule = "─" if out.unicode else "-"
    shown = blocks(columns, out.width) if kept is None or left_out else table_lines(kept, rule)
    return Group(Text(out.show(heading), "bold"), *shown, Text(""), drawn)


def _ratio_of(found: ContestTime, label: str) -> Interval | None:
    return next((arm.ratio for arm in found.arms if arm.label == label), None)


def ratio_text(ratio: Interval) -> str:
    """Return a ratio with its interval: `1.128 (1.115–1.136)`."""
    return f"{ratio.value:.3f} ({ratio.low:.3f}–{ratio.high:.3f})"


def _columns(found: ContestTime) -> list[Column]:
    arms = found.arms
    base = arms[0].label

    def column(title: str, text: Callable[[ArmTime], str], rank: int) -> Column:
        return Column(title, [text(arm) for arm in arms], title, rank=rank)

    ratios = ["baseline", *(ratio_text(arm.ratio) for arm in arms[1:])]
    return [
        Column("arm", [clean(arm.label) for arm in arms], left=True, is_arm=True),
        column("step ms", lambda arm: significant(arm.step_ms), 0),
        Column(
            f"vs {clean(base) if len(base) <= _LONGEST_NAME else 'baseline'}",
            ratios,
            styles=["dim", *(_style(arm.ratio, found.control) for arm in arms[1:])],
        ),
        column("floor", lambda arm: "" if arm is arms[0] else number(arm.floor, 3), 1),
        column("forward ms", lambda arm: significant(arm.forward_ms), 3),
        column("backward ms", lambda arm: significant(arm.backward_ms), 3),
        column("optimizer ms", lambda arm: significant(arm.optimizer_ms), 4),
        column("images/s", lambda arm: number(arm.images_per_second, 0), 2),
        column("peak MB", lambda arm: number(arm.traffic.peak / _MEGA, 1), 5),
        column("moved MB", lambda arm: number(arm.traffic.moved / _MEGA, 0), 6),
    ]


def _style(ratio: Interval, control: Interval) -> str:
    """Green or red where the interval lies beyond that of the baseline's second copy."""
    return "red" if ratio.is_above(control.high) else "green" if ratio.is_below(control.low) else ""


def _notes(found: ContestTime, left_out: Sequence[str]) -> Iterator[str]:
    widest = max((arm.ratio.relative_half for arm in found.arms[1:]), default=0.0)
    why = (
        "the asked precision was reached" if found.stopped_by == "precision" else "the budget (bench.seconds) was spent"
    )
    width = f": the widest interval is ±{100 * widest:.1f} % of its ratio" if len(found.arms) > 1 else ""
    yield f"{count_of(found.rounds, 'round')} in {found.seconds:.0f} s, one step of each in turn; {why}{width}."
    doubt = "" if not found.control.excludes(1) else ", which does not contain 1: something favoured one of them"
    yield (
        f"A second copy of {found.arms[0].label} took {ratio_text(found.control)} of the first{doubt}. "
        "Differences finer than 1 % mean nothing."
    )
    yield (
        "floor: the ratio that the bytes moved beyond the baseline's would give by themselves at "
        f"{found.bandwidth / 1e9:.0f} GB/s, measured by copying the widest normalized activation."
    )
    bound = [f"{arm.label} ({arm.host_ms / arm.step_ms:.0%})" for arm in found.arms if arm.host_ms and arm.launch_bound]
    if bound:
        way_out = "" if found.graph else "; bench.graph=true times them without launches"
        yield (
            f"Bound by launches: {', '.join(bound)}. The host takes so much of the step to issue it that the device "
            f"waits for the host, and the ratios are of launches more than of kernels{way_out}."
        )
    if found.graph:
        yield "Each step was replayed from a CUDA graph; its phases cannot be told apart."
    yield from found.left_out
    if left_out:
        yield f"left out for width: {', '.join(left_out)} (a wider terminal or --format shows them)"


@contextmanager
def benching(out: Terminal) -> Iterator[Callable[[str, Turns[str], float], None]]:
    """Give what is told of every round, with the seconds left at most.

    The terminal is redrawn between rounds only, so that nothing runs beside a step.
    """
    live = Live(console=out, auto_refresh=False, transient=True) if out.is_terminal else None
    last = [float("inf")]  # seconds left when the last line was written

    def watch(title: str, turns: Turns[str], left: float) -> None:
        if last[0] - left < (REDRAW_SECONDS if live is not None else LINE_SECONDS) and left <= last[0]:
            return
        last[0] = left
        if live is not None:
            live.update(_state(title, turns, left, out), refresh=True)
        else:
            out.say(f"{title or 'bench'}: round {turns.rounds}, at most {max(left, 0):.0f} s left{_widest(turns)}")

    if live is None:
        yield watch
        return
    with live:
        yield watch


def _state(title: str, turns: Turns[str], left: float, out: Terminal) -> Text:
    lines = [f"{title or 'bench'}: round {turns.rounds}, at most {max(left, 0):.0f} s left"]
    width = max(map(len, turns.figures))
    for name in turns.figures:
        if name != turns.reference and turns.rounds >= FEW:
            ratio = turns.ratio(name)
            lines.append(f"  {name:<{width}}  {ratio.value:.3f} ±{100 * ratio.relative_half:4.1f} %")
    return Text("\n".join(out.show(line) for line in lines), "dim")


def _widest(turns: Turns[str]) -> str:
    if turns.rounds < FEW:
        return ""
    widths = [turns.ratio(name).relative_half for name in turns.figures if name != turns.reference]
    return f", widest interval ±{100 * max(widths, default=0.0):.1f} %"
