"""Training with one straggler, in the terminal: a table a section, and in words who waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group
from rich.text import Text

from bnlab.bench.straggler_result import StragglerStep, StragglerTime
from bnlab.errors import count_of
from bnlab.interval import Interval
from bnlab.report.bench_report import left_out_note, round_text
from bnlab.report.console import Terminal
from bnlab.report.display import Display
from bnlab.report.figures import Cell, number, significant
from bnlab.report.table import Column, bullets, draw, joined


def straggler_table(times: StragglerTime, out: Terminal) -> Group:
    """Return one section, as wide as the console."""
    drawn = draw(_columns(times.steps), out)
    workers = f"{times.workers} workers, the last one late"
    heading = joined([*filter(None, [times.title]), workers, *times.setting], out, "bold")
    notes = bullets([*_notes(times), *left_out_note(drawn.left_out)], out)
    return Group(*heading, Text(""), *drawn.lines, Text(""), *notes)


def _columns(steps: Sequence[StragglerStep]) -> list[Column]:
    """Return the columns; what is sent does not depend on the delay, and stands in the first row only."""

    def column(title: str, text: Callable[[StragglerStep], str], rank: int) -> Column:
        return Column(title, [text(step) for step in steps], rank=rank)

    def shared(title: str, text: Callable[[StragglerStep], str], rank: int) -> Column:
        return Column(title, ["" if step.delay_ms else text(step) for step in steps], rank=rank)

    def growth(title: str, growths: Sequence[Interval], rank: int) -> Column:
        cells = []
        for step, by in zip(steps, growths, strict=True):
            interval = f"({number(by.low, 1, signed=True)} to {number(by.high, 1, signed=True)})"
            cells.append(Cell(number(by.value, 1, signed=True), interval) if step.delay_ms else Cell(""))
        short = [Cell(cell.head) for cell in cells] if rank else None
        return Column(title, cells, short=short, rank=rank)

    return [
        Column("norm", [step.norm for step in steps], left=True, is_name=True),
        Column("gradients", [step.gradients for step in steps], left=True, is_name=True),
        Column("late ms", [f"{step.delay_ms:g}" for step in steps], is_name=True),
        column("step ms", lambda s: significant(s.step_ms), 0),
        growth("step longer by ms", [s.step_growth for s in steps], 0),
        growth("forward longer by ms", [s.forward_growth for s in steps], 2),
        column("forward ms", lambda s: significant(s.forward_ms), 6),
        shared("collectives", lambda s: f"{s.forward_collectives} + {s.backward_collectives}", 3),
        shared("KB norm", lambda s: number((s.sent_bytes - s.gradient_bytes) / 1e3, 1), 4),
        shared("KB gradients", lambda s: number(s.gradient_bytes / 1e3, 1), 5),
    ]


def _notes(times: StragglerTime) -> Iterator[str]:
    yield "Must all examples wait for the slowest?"
    yield from (answer(times, norm) for norm in dict.fromkeys(step.norm for step in times.steps))
    why = (
        "every growth is known to the requested precision"
        if times.stopped_by == "precision"
        else "the budget was spent"
    )
    yield (
        f"{count_of(times.rounds, 'round')} in {times.seconds:.0f} s, one step of each in turn; {why}. "
        "The last worker sleeps at the start of its forward pass; "
        "times are the first worker's, which is not late itself."
    )
    yield (
        "gradients: averaged over the workers every step, or local, each worker with its own. Collectives a step, "
        "forward + backward: all workers meet in each. KB (1,000 bytes): what one worker hands to them in a step."
    )


def answer(times: StragglerTime, norm: str) -> str:
    """Return in a sentence whether a step under `norm` waits for the late worker, at the longest delay.

    An interval above half the delay is waiting, one below is not; in between nothing is said.
    """
    averaged, local = (
        max((s for s in times.steps if s.norm == norm and s.gradients == mode), key=lambda s: s.delay_ms)
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
def watching(out: Terminal, workers: int) -> Iterator[Callable[[str, int, float], None]]:
    """Yield what is told of title, round and seconds left at most."""
    with Display(out) as display:
        display.show(lambda: f"starting {workers} workers", part="start")
        yield lambda title, rounds, left: display.show(lambda: round_text(title, rounds, left), part=title)
