"""The progress of jobs on stderr: their bars on a terminal, a line now and then elsewhere.

The training loop reports through `Callback` where it flushes its rows, never in between.

    with make_progress(sys.stderr) as progress:
        progress.sweep_started(15)
        progress.job_started(0, "norm=batch seed=0", total_steps=2820)
        progress.advanced(64, loss=0.31, images_per_second=6900.0)
        progress.evaluated(940, {"valid.accuracy": 0.981})
        progress.job_ended(0, "done", "test 98.71 %")
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from bnlab.errors import count_of
from bnlab.report.console import Terminal
from bnlab.report.display import LINE_SECONDS, Display, bar_lines, can_redraw, duration
from bnlab.report.figures import number
from bnlab.training.callbacks import Callback
from bnlab.training.job import ResultState

LAST_JOBS = 12
MOST_AT_WORK = 4  # are named
ROUND_SECONDS = 60.0  # between lines of a round that takes long
_SEED = re.compile(r"\bseed=\S+")  # of a label, which is otherwise that of its arm
_MARKS = {
    "done": ("✓", "green"),
    "diverged": ("∞", "yellow"),
    "refused": ("–", "yellow"),
    "failed": ("✗", "red"),
    "interrupted": ("–", "yellow"),
    "killed": ("✗", "red"),
}


def make_progress(stream: IO[str], *, in_rounds: bool = False) -> Callback:
    """Return the live display where `stream` is a terminal that can move its cursor, else the plain lines.

    Of jobs `in_rounds`, after each of which it is seen whether another follows, lines tell the rounds.
    """
    terminal = Terminal(stream)
    if can_redraw(terminal):
        return LiveProgress(terminal)
    return RoundsProgress(terminal) if in_rounds else PlainProgress(terminal)


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
        self._num_jobs, self._ended, self._sweep_since = num_jobs, 0, self._now()
        self._draw()

    def job_started(self, index: int, label: str, total_steps: int) -> None:
        self._job = _Job(index, self._terminal.show(label), total_steps)
        self._draw()

    def advanced(self, step: int, loss: float, images_per_second: float) -> None:
        if self._job is not None:
            if math.isnan(self._job.first_seen):
                self._job.first_step, self._job.first_seen = step, self._now()
            self._job.step, self._job.loss, self._job.rate = step, loss, images_per_second
        self._draw()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._job is not None:
            self._job.step = max(step, self._job.step)
            self._job.metrics = dict(metrics)
        self._draw()

    def job_ended(self, index: int, state: ResultState, headline: str, accuracy: float | None = None) -> None:
        self._ended += 1
        self._job = None

    def _draw(self) -> None:
        """Show what has changed, where there is a display for it."""

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
        left = duration(job.seconds_left(self._now()))
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
        self._terminal.say(f"{num_jobs} job{'s' * (num_jobs != 1)}")

    def job_started(self, index: int, label: str, total_steps: int) -> None:
        super().job_started(index, label, total_steps)
        self._last_line = self._now()
        if total_steps and not self._num_jobs:
            self._terminal.say(f"{self._name(index)}: {count_of(total_steps, 'step')}")

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        super().evaluated(step, metrics)
        if self._job is not None and self._now() - self._last_line >= LINE_SECONDS:
            self._last_line = self._now()
            self._terminal.say(f"{self._name(self._job.index)}: step {', '.join(filter(None, self._facts().values()))}")

    def job_ended(self, index: int, state: ResultState, headline: str, accuracy: float | None = None) -> None:
        name = self._name(index)
        super().job_ended(index, state, headline, accuracy)
        left = duration(self._sweep_left()) if self._ended < self._num_jobs else ""
        self._terminal.say(
            ", ".join(part for part in (f"{name}: {state}", headline, left and f"{left} left in all") if part)
        )

    def noted(self, text: str) -> None:
        self._terminal.say(text)

    def _name(self, index: int) -> str:
        label = self._job.label if self._job else ""
        return f"{index + 1}/{self._num_jobs} {label}".rstrip() if self._num_jobs else label or "run"


class RoundsProgress(_Reporter):
    """Lines for a log of jobs in rounds: one when a round is over, and one a minute before that."""

    _last_line = -math.inf

    def sweep_started(self, num_jobs: int) -> None:
        super().sweep_started(num_jobs)
        self._states = Counter[str]()
        self._last_line = self._now()

    def job_ended(self, index: int, state: ResultState, headline: str, accuracy: float | None = None) -> None:
        label = self._job.label if self._job else ""
        super().job_ended(index, state, headline, accuracy)
        self._states[state] += 1
        if self._ended >= self._num_jobs or self._now() - self._last_line >= ROUND_SECONDS:
            self._last_line = self._now()
            states = ", ".join(f"{count} {state}" for state, count in self._states.items())
            last = ", ".join(filter(None, (label, headline)))
            self._terminal.say(f"{self._ended}/{count_of(self._num_jobs, 'job')}: {states}; the last: {last}")

    def noted(self, text: str) -> None:
        self._terminal.say(text)


class LiveProgress(_Reporter):
    """The comparison so far, the last jobs with their outcome, those that run, and the whole sweep."""

    def __init__(self, terminal: Terminal, now: Callable[[], float] | None = None) -> None:
        super().__init__(terminal, now)
        self._arms: dict[str, list[float]] = {}  # test accuracies of the jobs that are done, by arm
        self._lost = Counter[str]()  # other ends, by arm
        self._at_work: list[str] = []
        self._jobs: deque[tuple[ResultState, str, str]] = deque(maxlen=LAST_JOBS)
        self._finished = Text()
        self._display = Display(terminal, now)

    def job_ended(self, index: int, state: ResultState, headline: str, accuracy: float | None = None) -> None:
        label = self._job.label if self._job else f"job {index + 1}"
        super().job_ended(index, state, headline, accuracy)
        self._jobs.append((state, label, self._terminal.show(headline)))
        arm = _SEED.sub("", label).strip()
        if accuracy is not None and math.isfinite(accuracy):
            self._arms.setdefault(arm, []).append(accuracy)
        elif state in ("diverged", "failed", "killed"):
            self._lost[arm] += 1
        self._finished = self._so_far() if self._num_jobs else Text()
        self._draw()

    def running(self, labels: Sequence[str]) -> None:
        if labels != self._at_work:
            self._at_work = list(labels)
            self._draw()

    def noted(self, text: str) -> None:
        self._display.print(text)

    def closed(self) -> None:
        self._display.close()

    def _draw(self) -> None:
        started = f"{self._ended} {self._job is not None}"
        self._display.show(str, self._picture, part=started)

    def _so_far(self) -> Text:
        """The arms and the jobs that ended last, one a line: made once a job, which takes milliseconds."""
        arms = [*self._arms, *(arm for arm in self._lost if arm not in self._arms)]
        room = self._terminal.height - 5
        if not 1 < len(arms) < room:
            return self._last_jobs(room)
        margin = max(map(cell_len, arms))
        lines = [Text("test accuracy so far", "bold")]
        for arm in arms:
            known, lost = self._arms.get(arm, []), self._lost[arm]
            mean = f"{100 * statistics.fmean(known):6.2f} %, {len(known)} done" if known else "  –"
            lines.append(Text(f"   {arm}{' ' * (margin - cell_len(arm))}  {mean}"))
            lines[-1].append(f", {lost} lost" if lost else "", "yellow")
        blank = Text("\n", no_wrap=True, overflow="ellipsis")
        return blank.join([*lines, self._last_jobs(room - len(lines))] if room > len(lines) else lines)

    def _last_jobs(self, room: int) -> Text:
        """The jobs that ended last, as many as there is room for."""
        shown = list(self._jobs)[-max(room, 1) :]
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
            left = duration(self._sweep_left())
            facts = {"step": f"{self._ended}/{self._num_jobs} jobs", "left": f"{left} left" if left else ""}
            rows.append((Text("all", "dim"), self._ended, self._num_jobs, facts))
        above = [self._finished] if self._finished else []
        if self._at_work and self._job is None:
            more = len(self._at_work) - MOST_AT_WORK
            named = "; ".join(map(self._terminal.show, self._at_work[:MOST_AT_WORK]))
            text = f"running: {named}{f' and {more} more' if more > 0 else ''}"
            above.append(Text(text, no_wrap=True, overflow="ellipsis"))
        return Group(*above, bar_lines(rows, self._terminal.width))
