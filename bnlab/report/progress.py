"""Progress on stderr: a display on a terminal that is drawn over and over, a line now and then elsewhere.

Nothing that measures has a thread beside it: a display is drawn within a report, at most twice a second, so that no
step waits for it. The training loop reports through `Callback` where it flushes its rows, never in between. Only
`working`, for what does not report, has a sign that turns.

    with make_progress(sys.stderr) as progress:
        progress.sweep_started(15)
        progress.job_started(0, "norm=batch seed=0", total_steps=2820)
        progress.advanced(64, loss=0.31, images_per_second=6900.0)
        progress.evaluated(940, {"valid.accuracy": 0.981})
        progress.job_ended(0, "done", "test 98.71 %")
"""

from __future__ import annotations

import atexit
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bnlab.report.console import Terminal
from bnlab.report.figures import number
from bnlab.training.callbacks import Callback
from bnlab.training.job import ResultState

REDRAW_SECONDS = 0.5  # a redraw takes 1 to 2 ms
LINE_SECONDS = 10.0  # between two lines about evaluations where there is no terminal
LAST_JOBS = 12
_BAR = 20  # columns
_MARKS = {
    "done": ("✓", "green"),
    "diverged": ("∞", "yellow"),
    "failed": ("✗", "red"),
    "interrupted": ("–", "yellow"),
    "killed": ("✗", "red"),
}


def make_progress(stream: IO[str]) -> Callback:
    """Return the live display where `stream` is a terminal that can move its cursor, else the plain lines."""
    terminal = Terminal(stream)
    return LiveProgress(terminal) if _can_redraw(terminal) else PlainProgress(terminal)


@contextmanager
def working(out: Terminal) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows, on a terminal, what is being done."""
    if not _can_redraw(out):
        yield lambda what: None
        return
    with out.status("", spinner="line") as status:
        yield lambda what: status.update(out.show(what))


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
            "left": f"{_duration((total - done) / rate)} left" if rate > 0 else "",
        }
        display.show(
            lambda: f"{name}: {facts['step']}",
            lambda: _bars([(Text(out.show(name)), done, total, facts)], out.width),
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
        # results go to stdout meanwhile: where that is a terminal too they must come above the display
        self._live = (
            Live(console=out, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty())
            if _can_redraw(out)
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
        """Take the picture away; a second call does nothing."""
        if self._live is not None:
            atexit.unregister(self._live.stop)
            self._live.stop()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _can_redraw(terminal: Terminal) -> bool:
    return terminal.is_terminal and not terminal.is_dumb_terminal


# ---------------------------------------------------------------- jobs and their training


@dataclass
class _Job:
    """The current job as last reported."""

    index: int
    label: str
    total: int
    step: int = 0
    first_step: int = 0  # where the measured stretch begins: after the first report, which pays the warm-up
    first_seen: float = math.nan
    loss: float = math.nan
    rate: float = math.nan
    metrics: dict[str, float] = field(default_factory=dict)

    def seconds_left(self, now: float) -> float | None:
        if self.step <= self.first_step or self.total <= 0:
            return None
        return (now - self.first_seen) / (self.step - self.first_step) * max(self.total - self.step, 0)


class _Reporter(Callback):
    """What both displays keep: the current job and the count of those that ended."""

    def __init__(self, terminal: Terminal, now: Callable[[], float] | None = None) -> None:
        self._terminal = terminal
        self._now = now or terminal.get_time
        self._num_jobs = 0
        self._ended = 0
        self._sweep_since = self._now()
        self._job: _Job | None = None

    def sweep_started(self, num_jobs: int) -> None:
        self._num_jobs, self._sweep_since = num_jobs, self._now()

    def job_started(self, index: int, label: str, total_steps: int) -> None:
        self._job = _Job(index, self._terminal.show(label), total_steps)

    def advanced(self, step: int, loss: float, images_per_second: float) -> None:
        if self._job is not None:
            if math.isnan(self._job.first_seen):
                self._job.first_step, self._job.first_seen = step, self._now()
            self._job.step, self._job.loss, self._job.rate = step, loss, images_per_second

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._job is not None:
            self._job.step = max(step, self._job.step)
            self._job.metrics = dict(metrics)

    def job_ended(self, index: int, state: ResultState, headline: str) -> None:
        self._ended += 1
        self._job = None

    def _sweep_left(self) -> float | None:
        """Seconds left by the mean of the jobs that ended, the current one counted by its share."""
        share = self._job.step / self._job.total if self._job and self._job.total else 0.0
        over = self._ended + share
        return (self._now() - self._sweep_since) / over * (self._num_jobs - over) if over > 0 else None

    def _facts(self) -> dict[str, str]:
        """What there is to say about the current job; the accuracy is of the validation split if there is one."""
        job = self._job
        if job is None:
            return {}
        split = next((s for s in ("valid", "test", "train") if f"{s}.accuracy" in job.metrics), None)
        left = _duration(job.seconds_left(self._now()))
        return {
            "step": f"{job.step:,}/{job.total:,}",
            "loss": f"loss {number(job.loss, 4)}" if math.isfinite(job.loss) else "",
            "accuracy": f"{split} {number(100 * job.metrics[f'{split}.accuracy'], 2)} %" if split else "",
            "rate": f"{job.rate:,.0f} images/s" if math.isfinite(job.rate) and job.rate > 0 else "",
            "left": f"{left} left" if left else "",
        }


class PlainProgress(_Reporter):
    """Lines for a log: the start, an evaluation at most every ten seconds, the end of each job; no carriage return."""

    _last_line = -math.inf

    def sweep_started(self, num_jobs: int) -> None:
        super().sweep_started(num_jobs)
        self._say(f"{num_jobs} job{'s' * (num_jobs != 1)}")

    def job_started(self, index: int, label: str, total_steps: int) -> None:
        super().job_started(index, label, total_steps)
        self._last_line = self._now()
        if not self._num_jobs:
            self._say(f"{self._name(index)}: {total_steps:,} steps")

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        super().evaluated(step, metrics)
        if self._job is not None and self._now() - self._last_line >= LINE_SECONDS:
            self._last_line = self._now()
            self._say(f"{self._name(self._job.index)}: step {', '.join(filter(None, self._facts().values()))}")

    def job_ended(self, index: int, state: ResultState, headline: str) -> None:
        name = self._name(index)
        super().job_ended(index, state, headline)
        left = _duration(self._sweep_left()) if self._ended < self._num_jobs else ""
        self._say(", ".join(part for part in (f"{name}: {state}", headline, left and f"{left} left in all") if part))

    def noted(self, text: str) -> None:
        self._say(text)

    def _name(self, index: int) -> str:
        label = self._job.label if self._job else ""
        return f"{index + 1}/{self._num_jobs} {label}".rstrip() if self._num_jobs else label or "run"

    def _say(self, line: str) -> None:
        self._terminal.emit(self._terminal.show(line) + "\n")


class LiveProgress(_Reporter):
    """The last jobs with their outcome, the current one with its bar, and the whole sweep."""

    def __init__(self, terminal: Terminal, now: Callable[[], float] | None = None) -> None:
        super().__init__(terminal, now)
        self._jobs: deque[tuple[ResultState, str, str]] = deque(maxlen=LAST_JOBS)
        self._finished = Text()
        self._display = Display(terminal, now)

    def sweep_started(self, num_jobs: int) -> None:
        super().sweep_started(num_jobs)
        self._draw()

    def job_started(self, index: int, label: str, total_steps: int) -> None:
        super().job_started(index, label, total_steps)
        self._draw()

    def advanced(self, step: int, loss: float, images_per_second: float) -> None:
        super().advanced(step, loss, images_per_second)
        self._draw()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        super().evaluated(step, metrics)
        self._draw()

    def job_ended(self, index: int, state: ResultState, headline: str) -> None:
        label = self._job.label if self._job else f"job {index + 1}"
        super().job_ended(index, state, headline)
        self._jobs.append((state, label, self._terminal.show(headline)))
        self._finished = self._last_jobs() if self._num_jobs else Text()
        self._draw()

    def noted(self, text: str) -> None:
        self._display.print(text)

    def closed(self) -> None:
        self._display.close()

    def _draw(self) -> None:
        started = f"{self._ended} {self._job is not None}"
        self._display.show(str, self._picture, part=started)

    def _last_jobs(self) -> Text:
        """The jobs that ended last, one a line: made once a job, because drawing a table takes milliseconds."""
        shown = list(self._jobs)[-max(self._terminal.height - 4, 1) :]
        margin = max(cell_len(label) for _, label, _ in shown)
        return Text("\n", no_wrap=True, overflow="ellipsis").join(
            Text.assemble(
                (self._terminal.show(_MARKS[state][0]), _MARKS[state][1]),
                f"  {label}{' ' * (margin - cell_len(label))}  ",
                (headline, "" if state == "done" else _MARKS[state][1]),
            )
            for state, label, headline in shown
        )

    def _picture(self) -> Group:
        rows: list[tuple[Text, int, int, Mapping[str, str]]] = []
        if self._job is not None:
            rows.append((Text(self._job.label), self._job.step, self._job.total, self._facts()))
        if self._num_jobs:
            left = _duration(self._sweep_left())
            facts = {"step": f"{self._ended}/{self._num_jobs} jobs", "left": f"{left} left" if left else ""}
            rows.append((Text("all", "dim"), self._ended, self._num_jobs, facts))
        return Group(*([self._finished] if self._finished else []), _bars(rows, self._terminal.width))


def _bars(rows: Sequence[tuple[Text, int, int, Mapping[str, str]]], width: int) -> Table:
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


def _duration(seconds: float | None) -> str:
    """Return `0:42`, `12:05` or `3:20:00`; nothing where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
