"""What is on its way, on stderr: a picture that is drawn over and over, or a line now and then.

Nothing that measures has a thread beside it: a picture is drawn within a report, at most twice a second, so that no
step waits for it. Only `working`, for what does not report, has a sign that turns.
"""

from __future__ import annotations

import atexit
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import IO

from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bnlab.report.console import Terminal

REDRAW_SECONDS = 0.5  # a redraw takes 1 to 2 ms
LINE_SECONDS = 10.0  # between two lines where there is no terminal
_BAR = 20  # columns


@contextmanager
def working(out: Terminal) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is being done: on a terminal at once, elsewhere a line every ten seconds."""
    if can_redraw(out):
        with out.status("", spinner="line") as status:
            yield lambda what: status.update(out.show(what))
        return
    told, over = list[str](), Event()

    def lines() -> None:
        while not over.wait(LINE_SECONDS):
            if told:
                out.say(told[-1])

    thread = Thread(target=lines, daemon=True)
    thread.start()
    try:
        yield told.append
    finally:
        over.set()
        thread.join()


@contextmanager
def download_meter(stream: IO[str], name: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what to call with (bytes so far, bytes in all): a bar, or a line at every tenth."""
    out = Terminal(stream)
    start: list[tuple[float, int]] = []  # when, and what was there before

    def report(done: int, total: int) -> None:
        start[:] = start or [(out.get_time(), done)]
        since, before = start[0]
        rate = (done - before) / max(out.get_time() - since, 1e-3)
        facts = {
            "step": f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB",
            "rate": f"{rate / 1e6:,.1f} MB/s" if rate > 0 else "",
            "left": f"{duration((total - done) / rate)} left" if rate > 0 else "",
        }
        display.show(
            lambda: f"{name}: {facts['step']}",
            lambda: bar_lines([(Text(out.show(name)), done, total, facts)], out.width),
            part=str(10 * done // total if total else 0),
        )

    with Display(out) as display:
        yield report


class Display:
    """A picture that takes the place of the one before it; where none can be drawn, a line now and then.

    It is gone when its `with` block ends, and the cursor is there again, also where nobody ends it.
    """

    def __init__(self, out: Terminal, now: Callable[[], float] | None = None) -> None:
        self._out = out
        self._now = now or out.get_time
        self._last, self._part = -math.inf, ""
        self._live = self._new()

    def _new(self) -> Live | None:
        # results go to stdout meanwhile: where that is a terminal too they must come above the display
        to_stdout = sys.stdout.isatty()
        out = self._out
        return (
            Live(console=out, auto_refresh=False, transient=True, redirect_stdout=to_stdout)
            if can_redraw(out)
            else None
        )

    def show(
        self, line: Callable[[], str], picture: Callable[[], RenderableType] | None = None, *, part: str = ""
    ) -> None:
        """Show `picture`, by default the line itself, or write `line`: where it is time, or another `part` begins."""
        now, is_due = self._now(), part != self._part
        is_due |= now - self._last >= (LINE_SECONDS if self._live is None else REDRAW_SECONDS)
        if not is_due:
            return
        self._last, self._part = now, part
        if self._live is None:
            self._out.say(line())
            return
        if not self._live.is_started:
            atexit.register(self._live.stop)
            self._live.start()
        self._live.update(picture() if picture else Text(self._out.show(line()), "dim"), refresh=True)

    def print(self, text: str) -> None:
        """Write a line above the picture."""
        self._out.print(Text(self._out.show(text)))

    def close(self) -> None:
        """Take the picture away until the next one is shown; a second call does nothing."""
        if self._live is not None and self._live.is_started:
            atexit.unregister(self._live.stop)
            self._live.stop()
            self._live, self._part = self._new(), ""  # the old one would wipe as many lines above it again

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def can_redraw(terminal: Terminal) -> bool:
    """Return whether the stream is a terminal that can move its cursor."""
    return terminal.is_terminal and not terminal.is_dumb_terminal


def bar_lines(rows: Sequence[tuple[Text, int, int, Mapping[str, str]]], width: int) -> Table:
    """Return a line for each (label, done, total, facts), as many facts as there is room for."""
    label, bar = max(width // 3, 4), _BAR if width >= 60 else 6
    bars = Table.grid(padding=(0, 2, 0, 0))
    bars.add_column(no_wrap=True, overflow="ellipsis", max_width=label)
    bars.add_column(width=bar)
    bars.add_column(no_wrap=True, overflow="ellipsis")
    room = width - min(max((row[0].cell_len for row in rows), default=0), label) - bar - 4
    for name, done, total, facts in rows:
        bars.add_row(name, _bar(done, total), _fitting(facts, room))
    return bars


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(max(total, 1), done, complete_style="cyan", finished_style="green", style="bright_black")


def _fitting(facts: Mapping[str, str], room: int) -> str:
    """Return as many facts as there is room for; the speed goes first, the step stays."""
    kept = {name: fact for name, fact in facts.items() if fact}
    for name in ("rate", "loss", "left", "accuracy"):
        if len("  ".join(kept.values())) > room:
            kept.pop(name, None)
    return "  ".join(kept.values())


def duration(seconds: float | None) -> str:
    """Return `0:42`, `12:05` or `3:20:00`; nothing where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
