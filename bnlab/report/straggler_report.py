"""Training with one late worker, in the terminal: a table a section, and in words who waits for it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from bnlab.bench.straggler_result import StragglerStep, StragglerTime
from bnlab.compare.notes import count_of
from bnlab.interval import Interval
from bnlab.report.bench_report import LINE_SECONDS
from bnlab.report.columns import Column, aligned, fold, in_ascii
from bnlab.report.console import Terminal, clean
from bnlab.report.figures import Cell, number, significant
from bnlab.report.table import table_lines, wrapped


def straggler_table(found: StragglerTime, out: Terminal) -> Group:
    """Return one section, as wide as the console."""
    columns = _columns(found.steps)
    columns = columns if out.unicode else [in_ascii(column) for column in columns]
    kept, left_out = fold(columns, out.width)
    workers = f"{found.workers} workers, the last one late"
    heading = [out.show(part) for part in (*filter(None, [found.title]), workers, *found.setting)]
    between = " · " if out.unicode else " | "
    lines: list[RenderableType] = [Text(line, "bold") for line in wrapped(heading, out.width, between)]
    lines += [Text(""), *table_lines(kept or columns[:5], "─" if out.unicode else "-"), Text("")]
    for note in _notes(found, [column.title for column in left_out]):
        for count, line in enumerate(textwrap.wrap(out.show(note), max(out.width - 2, 20), break_long_words=False)):
            lines.append(Text(("  " if count else "· " if out.unicode else "- ") + line, "dim"))
    return Group(*lines)


def _columns(steps: Sequence[StragglerStep]) -> list[Column]:
    """Return the columns; what all delays of a strategy share stands in their first row only."""

    def column(title: str, text: Callable[[StragglerStep], str], rank: int) -> Column:
        return Column(title, [text(step) for step in steps], title, rank=rank)

    def shared(title: str, text: Callable[[StragglerStep], str], rank: int, left: bool = False) -> Column:
        return Column(title, ["" if s.delay_ms else text(s) for s in steps], title, rank=rank, left=left, is_arm=left)

    def growth(title: str, growths: Sequence[Interval], rank: int) -> Column:
        cells = []
        for step, by in zip(steps, growths, strict=True):
            interval = f"({number(by.low, 1, signed=True)} to {number(by.high, 1, signed=True)})"
            cells.append(Cell(number(by.value, 1, signed=True), interval) if step.delay_ms else Cell(""))
        short = aligned([Cell(cell.head) for cell in cells]) if rank else None
        return Column(title, aligned(cells), title, short, rank)

    return [
        shared("norm", lambda s: clean(s.norm), 0, left=True),
        shared("gradients", lambda s: s.gradients, 0, left=True),
        column("late ms", lambda s: f"{s.delay_ms:g}", 0),
        column("step ms", lambda s: significant(s.step_ms), 0),
        growth("step longer by ms", [s.step_growth for s in steps], 0),
        growth("forward longer by ms", [s.forward_growth for s in steps], 2),
        column("forward ms", lambda s: significant(s.forward_ms), 6),
        shared("collectives", lambda s: f"{s.forward_collectives} + {s.backward_collectives}", 3),
        shared("KB norm", lambda s: number((s.sent_bytes - s.gradient_bytes) / 1e3, 1), 4),
        shared("KB gradients", lambda s: number(s.gradient_bytes / 1e3, 1), 5),
    ]


def _notes(found: StragglerTime, left_out: Sequence[str]) -> Iterator[str]:
    yield "Must all examples wait for the slowest?"
    yield from (answer(found, norm) for norm in dict.fromkeys(step.norm for step in found.steps))
    why = "every growth is known to the asked precision" if found.stopped_by == "precision" else "the budget was spent"
    yield (
        f"{count_of(found.rounds, 'round')} in {found.seconds:.0f} s, one step of each in turn; {why}. "
        "The last worker sleeps at the start of its forward pass; "
        "times are the first worker's, which is not late itself."
    )
    yield (
        "gradients: averaged over the workers every step, or local, each worker with its own. Collectives a step, "
        "forward + backward: all workers meet in each. KB (1,000 bytes): what one worker hands to them in a step."
    )
    if left_out:
        yield f"left out for width: {', '.join(left_out)} (a wider terminal or --format shows them)"


def answer(found: StragglerTime, norm: str) -> str:
    """Return in a sentence whether a step under `norm` waits for the late worker, at the longest delay.

    An interval above half the delay is waiting, one below is not; in between nothing is said.
    """
    averaged, local = (
        max((s for s in found.steps if s.norm == norm and s.gradients == mode), key=lambda s: s.delay_ms)
        for mode in ("averaged", "local")
    )
    half = averaged.delay_ms / 2
    late = f"with a worker {averaged.delay_ms:g} ms late"
    alone, ahead, whole = (
        f"{number(growth.value, 1, signed=True)} ms"
        for growth in (local.step_growth, averaged.forward_growth, averaged.step_growth)
    )
    if local.step_growth.is_above(half) and averaged.forward_growth.is_above(half):
        return (
            f"{norm}: yes, its statistics wait for the slowest: {late} the others' forward pass changes by {ahead}, "
            f"and their step by {alone} even where no gradients are averaged."
        )
    if local.step_growth.is_below(half) and averaged.forward_growth.is_below(half):
        return (
            f"{norm}: no, nobody waits in order to normalize: {late} the others' step changes by {alone} where no "
            f"gradients are averaged; where they are, by {whole}, of which {ahead} in the forward pass."
        )
    return f"{norm}: not clear within these intervals ({late}: forward {ahead}, step {alone} to {whole}); more seconds?"


@contextmanager
def progress(out: Terminal, workers: int) -> Iterator[Callable[[str, int, float], None]]:
    """Give what is told of title, round and seconds left at most; the terminal is redrawn only then."""
    starting = f"starting {workers} workers"
    if not out.is_terminal:
        out.say(starting)
        last = [float("inf")]  # seconds left when the last line was written

        def line(title: str, rounds: int, left: float) -> None:
            if last[0] - left >= LINE_SECONDS or left > last[0]:
                last[0] = left
                out.say(_state(title, rounds, left))

        yield line
        return
    with Live(Text(starting, "dim"), console=out, auto_refresh=False, transient=True) as live:
        yield lambda title, rounds, left: live.update(Text(out.show(_state(title, rounds, left)), "dim"), refresh=True)


def _state(title: str, rounds: int, left: float) -> str:
    return f"{title or 'bench'}: round {rounds}, at most {max(left, 0):.0f} s left"
