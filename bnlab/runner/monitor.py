"""What came of jobs, read from their folders whoever runs them: how each ends, and a summary after them."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from bnlab.compare.arms import arms_of, short_names, text_of
from bnlab.errors import RecordError
from bnlab.metrics import metrics, not_learned, warnings_of
from bnlab.record.latest import name_of
from bnlab.record.plain_files import read_plain
from bnlab.record.read import Run, read_runs, refusals, started
from bnlab.record.run_folder import read_status
from bnlab.report.console import messages, results
from bnlab.report.data_report import images_passed_over, images_used
from bnlab.report.figures import MISSING
from bnlab.report.table import Column, draw
from bnlab.training.callbacks import Callback
from bnlab.training.job import Job, JobResult, ResultState

GONE = "is not there any more, it was moved or removed while its jobs ran"
LOOK_SECONDS = 0.25
SHARE = 0.05  # of the time, at most, for looking
HEADLINE = {  # metrics, and how a sentence has them
    "test_accuracy": "{} % test accuracy",
    "acc_gap": "a gap of {} points to the statistics of training",
    "step_ms": "{} ms a step",
    "train_seconds": "{} s of training",
}


def ending(folder: Path, state: str, reason: str) -> tuple[str, float | None]:
    """Return in a few words how a job ended, and its test accuracy where it is done."""
    if state != "done":
        return reason.partition("\n")[0], None
    try:
        summary = json.loads(read_plain(folder / "summary.json"))
        accuracy = float(summary["curve"]["test.accuracy"][-1])
        lost = f" ({said})" if (said := not_learned(summary)) else ""
        times = f"{summary['wall_seconds']:.1f} s ({summary['train_seconds']:.1f} s training)"
        return f"test {100 * accuracy:.2f} %{lost}, {times}", accuracy
    except (OSError, ValueError, LookupError, TypeError):
        return "", None


def tell_end(job: Job, status: Mapping[str, Any], callback: Callback) -> None:
    """Tell how a job ended, from its status."""
    states: tuple[ResultState, ...] = get_args(ResultState)
    state: ResultState = next((known for known in states if known == status.get("state")), "interrupted")
    callback.job_ended(job.index, state, *ending(job.folder, state, str(status.get("error") or "")))


@contextmanager
def watched(folder: Path, jobs: Sequence[Job], attempts: int, callback: Callback) -> Iterator[None]:
    """Tell `callback` of each job below `folder` that ends meanwhile; a failed one may have `attempts` in all.

    `jobs` are those known beforehand; a search makes others.
    """
    monitor = _Monitor(folder, jobs, attempts, callback)
    over = threading.Event()

    def follow() -> None:
        pause = LOOK_SECONDS
        while not over.wait(pause):
            start = time.monotonic()
            monitor.look()
            pause = max(LOOK_SECONDS, (time.monotonic() - start) / SHARE)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        monitor.look(last=True)


class _Monitor:
    def __init__(self, folder: Path, jobs: Sequence[Job], attempts: int, callback: Callback) -> None:
        self._folder, self._callback, self._attempts = folder, callback, attempts
        self._is_search = not jobs
        self._running = {job.folder.name: job for job in jobs}
        self._seen = {name: _version(job.folder) for name, job in self._running.items()}
        self._failures = Counter[str]()
        self._ended: set[str] = set()
        self._at_work: dict[str, str] = {}  # name -> label of the jobs that are being done

    def look(self, *, last: bool = False) -> None:
        """Tell of what ended since the last look; the last one tells of failures that were not tried again, too."""
        if self._is_search:
            for name in sorted((path.name for path in self._folder.glob("*") if path.name.isdigit()), key=int):
                if name not in self._ended:
                    self._running.setdefault(name, Job(self._folder / name, int(name)))
        for name, job in list(self._running.items()):
            if self._has_ended(name, job, last):
                self._ended.add(name)
                del self._running[name]
        self._callback.running(list(self._at_work.values()))

    def _has_ended(self, name: str, job: Job, last: bool) -> bool:
        version = _version(job.folder)
        if version == self._seen.get(name) and not (last and name in self._failures):
            return False
        try:
            status = read_status(job.folder) or {}
        except RecordError:
            return False
        self._seen[name] = version
        state = status.get("state", "queued")
        label = job.label or str(status.get("label") or "")
        self._at_work.pop(name, None)
        if state in ("queued", "running"):
            self._at_work |= {name: label} if state == "running" else {}
            return False
        if state in ("failed", "killed"):
            self._failures[name] += 1
            if self._failures[name] < self._attempts and not last:
                return False
        self._callback.job_started(job.index, label, 0)
        tell_end(job, status, self._callback)
        return True


def _version(folder: Path) -> tuple[int, int] | None:
    """Return what differs when the status was written anew."""
    try:
        about = (folder / "status.json").lstat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino


# ---------------------------------------------------------------- the summary


def summarize(
    folder: Path, multirun: bool, absent: str, failure: Exception | None, ended: Mapping[Path, JobResult]
) -> int:
    """Print a line a run on stdout and what went wrong on stderr; return the exit code.

    `absent` says what is to be thought of a job that is still queued; `failure` is what the launcher raised; `ended`
    what is known of jobs whose folders could not be told it, on a full disk above all.
    """
    if not folder.is_dir():
        for path, result in ended.items():
            messages().say(f"{path} {result.state}: {result.reason.partition(chr(10))[0]}")
        messages().say(f"{folder}: {GONE}")
        messages().say("to finish: bnlab resume FOLDER, with the folder where it lies now")
        return 1
    runs, skipped = read_runs([folder])
    runs = [_with_result(run, ended.get(run.folder)) for run in runs]
    apart = Counter(run.state for run in runs if run.state in ("not needed", "refused"))
    gone = [path for path in ended if not path.is_dir()]
    total = len(runs) + len(skipped) + len(gone)
    expected = total - apart["not needed"]
    runs = started(runs)
    runs.sort(key=lambda run: (len(run.folder.name), run.folder.name))  # by number, however they were started
    out, err = results(), messages()
    arms, changed = arms_of(runs) if runs else ([], [])
    names = short_names(changed)
    said = {
        run.folder: {names[key]: text_of(arm.values[key]) for key in changed if key in arm.values}
        for arm in arms
        for run in arm.runs
    }
    if out.is_terminal:
        for row in draw(_columns(folder, runs, said, list(names.values())), out).lines:
            out.print(row)
    else:
        for run in runs:
            out.print(out.show(_line(run, said[run.folder])), soft_wrap=True)
    for line in dict.fromkeys(filter(None, map(_data_line, runs))):
        out.say(line)
    doubts = Counter(
        warning for run in runs if run.summary for warning in warnings_of(run.summary, run.config.get("eval.stats"))
    )
    for warning, count in doubts.items():
        err.say(f"warning: {warning}" + (f" ({count} of {len(runs)} runs)" if multirun else ""))
    for line in refusals(runs):
        err.say(line)
    bad = [run for run in runs if run.state not in ("done", "refused")]
    for run in bad:
        unknown = "is still running" if run.state == "running" else "no reason recorded"
        err.say(f"{run.folder} {run.state}: {(run.error or unknown).partition(chr(10))[0]}")
    for advice in dict.fromkeys(line for run in bad for line in (run.error or "").splitlines()[1:3]):
        err.say(advice)
    for path, reason in skipped:
        err.say(f"{path}: {reason}")
    for path in gone:
        err.say(f"{path}: {GONE}")
    missing = expected - len(runs) - len(skipped) - len(gone)
    if missing:
        err.say(f"{missing} of {expected} jobs: {absent}")
    if failure is not None:
        err.say(f"the launcher stopped: {str(failure).partition(chr(10))[0]}")
    if multirun:
        without = "".join(f", {count} {state}" for state, count in apart.items())
        done = sum(run.state == "done" for run in runs)
        err.say(f"{done} of {total} jobs done{without}; bnlab compare {name_of(folder)}")
    elif runs and runs[0].state == "done":
        figures = [HEADLINE[name].format(figure) for name, figure in _figures(runs[0])]
        err.say(", ".join(filter(None, [*figures, not_learned(runs[0].summary or {})])))
        err.say(f"curves: bnlab show {name_of(folder)}; the gap by its causes: bnlab probe {name_of(folder)}")
    if missing or gone or any(run.state != "diverged" for run in bad):
        err.say(f"to finish: bnlab resume {name_of(folder)}")
    return int(bool(bad or skipped or missing or gone or failure is not None))


def _columns(
    folder: Path, runs: Sequence[Run], said: Mapping[Path, Mapping[str, str]], keys: Sequence[str]
) -> list[Column]:
    """Return what `_line` says as columns for a terminal, a run by the word that other commands take for it."""
    words = [name_of(folder) + (f"/{run.folder.name}" if run.folder != folder else "") for run in runs]
    figures = [dict(_figures(run)) for run in runs]
    shown = [metrics[name] for name in HEADLINE if any(name in each for each in figures)]
    return [
        Column("run", words, left=True),
        Column("", [run.state for run in runs], left=True),
        *(Column(key, [said[run.folder].get(key, MISSING) for run in runs], left=True) for key in keys),
        Column("seed", [str(run.seed) for run in runs]),
        *(
            Column(m.title + " %" * (m.unit == "%"), [each.get(m.name, MISSING) for each in figures], rank=rank)
            for rank, m in enumerate(shown)
        ),
    ]


def _with_result(run: Run, result: JobResult | None) -> Run:
    """Return a run with the end that its folder does not tell of."""
    if result is None or run.state in ("done", "diverged") or run.error:
        return run
    return replace(run, state=result.state, error=result.reason or None)


def _data_line(run: Run) -> str:
    """Return how many of the user's own images a run used, and what was passed over; nothing for other data sets."""
    used, passed = images_used(run.environment), images_passed_over(run.environment)
    return used and f"{run.config.get('data.path')}: {used}" + (f"; passed over: {passed}" if passed else "")


def _line(run: Run, arm: Mapping[str, str]) -> str:
    """Return folder, status, what the run was and its headline figures, as `bnlab list metrics` has their units."""
    parts = [str(run.folder), run.state, *(f"{key}={value}" for key, value in arm.items()), f"seed={run.seed}"]
    return "  ".join([*parts, *(f"{name}={figure}" for name, figure in _figures(run))])


def _figures(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the headline figures that a run has, in their units."""
    for metric in map(metrics.__getitem__, HEADLINE):
        value = metric.derive(run.summary) if run.summary and run.state == "done" else None
        if isinstance(value, float):
            yield metric.name, f"{value * metric.scale:.4g}"
