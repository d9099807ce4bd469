"""Progress: lines in a log, a display on a terminal, and nothing left behind."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import helpers_terminal as pseudo_terminal
import pytest
from helpers_cli import BNLAB, QUICK, bnlab, environment
from helpers_runs import make_run

from bnlab.record.read import read_runs
from bnlab.report import display
from bnlab.report.console import Terminal
from bnlab.report.progress import LiveProgress, PlainProgress, RoundsProgress, make_progress
from bnlab.report.table import draw
from bnlab.runner import monitor
from bnlab.training.callbacks import Callback

SHOW_CURSOR, HIDE_CURSOR, UP = "\x1b[?25h", "\x1b[?25l", "\x1b[1A"


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[io.StringIO], Terminal]:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return Terminal


def sweep(progress: Callback, clock: Clock) -> None:
    progress.sweep_started(2)
    for index, label in enumerate(("norm=none seed=0", "norm=batch\x1b[2J seed=0")):
        progress.job_started(index, label, 1000)
        for step in range(100, 1001, 100):
            clock.now += 2.0
            progress.advanced(step, 1 / step, 6900.0)
            progress.evaluated(step, {"valid.accuracy": 0.9 + step / 20_000, "train.accuracy": 1.0})
        progress.job_ended(index, "done" if index == 0 else "diverged", f"test 98.7{index} %")
    progress.closed()
    progress.closed()


def test_lines_break_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    line = "recorded in runs/20261130-174810-bench-06d5ba; bnlab compare bench-06d5ba"
    screen, log = Screen(), io.StringIO()
    for stream in (screen, log):
        Terminal(stream).say(line)
    assert screen.getvalue().splitlines() == [
        "recorded in",
        "runs/20261130-174810-bench-06d5ba; bnlab",
        "compare bench-06d5ba",
    ]
    assert log.getvalue() == f"{line}\n"


def test_the_table_after_a_sweep_stays_one_at_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "runs" / "20261130-174810-sweep-06d5ba"
    for i, (norm, state) in enumerate((("none", "diverged"), ("batch", "done"))):
        make_run(folder / str(i), norm=norm, state=state)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BNLAB_RUNS", "runs")
    runs, _ = read_runs([Path("runs") / folder.name])
    said = {run.folder: {"norm": "instance", "lr": "0.64", "schedule": "one_cycle"} for run in runs}
    columns = monitor._columns(Path("runs") / folder.name, runs, said, ["norm", "lr", "schedule"])
    titles, _, *rows = [line.plain for line in draw(columns, Terminal(Screen())).lines][-4:]
    assert "sweep-06d5ba/0  diverged" in rows[0]
    assert len(rows) == 2
    assert "%" in titles


def test_a_log_gets_a_line_now_and_then(terminal: Callable[[io.StringIO], Terminal]) -> None:
    stream, clock = io.StringIO(), Clock()
    sweep(PlainProgress(terminal(stream), clock), clock)
    assert stream.getvalue().splitlines() == [
        "2 jobs",
        "1/2 norm=none seed=0: step 500/1,000, loss 0.0020, valid 92.50 %, 6,900 images/s, 0:10 left",
        "1/2 norm=none seed=0: step 1,000/1,000, loss 0.0010, valid 95.00 %, 6,900 images/s, 0:00 left",
        "1/2 norm=none seed=0: done, test 98.70 %, 0:20 left in all",
        r"2/2 norm=batch\x1b[2J seed=0: step 500/1,000, loss 0.0020, valid 92.50 %, 6,900 images/s, 0:10 left",
        r"2/2 norm=batch\x1b[2J seed=0: step 1,000/1,000, loss 0.0010, valid 95.00 %, 6,900 images/s, 0:00 left",
        r"2/2 norm=batch\x1b[2J seed=0: diverged, test 98.71 %",
    ]
    assert "\r" not in stream.getvalue()


def test_a_log_of_rounds_gets_a_line_a_round_and_one_a_minute(terminal: Callable[[io.StringIO], Terminal]) -> None:
    stream, clock = io.StringIO(), Clock()
    progress = RoundsProgress(terminal(stream), clock)
    sweep(progress, clock)
    progress.sweep_started(5)
    for seed in range(5):
        progress.job_started(seed, f"seed={seed}", 10)
        clock.now += 25.0
        progress.evaluated(10, {})
        progress.job_ended(seed, "done", f"test 9{seed}.00 %")
    assert stream.getvalue().splitlines() == [
        r"2/2 jobs: 1 done, 1 diverged; the last: norm=batch\x1b[2J seed=0, test 98.71 %",
        "3/5 jobs: 3 done; the last: seed=2, test 92.00 %",
        "5/5 jobs: 5 done; the last: seed=4, test 94.00 %",
    ]
    assert isinstance(make_progress(io.StringIO(), in_rounds=True), RoundsProgress)


def test_one_run_in_a_log_has_a_start_and_an_end(terminal: Callable[[io.StringIO], Terminal]) -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainProgress(terminal(stream), clock) as progress:
        progress.job_started(0, "norm=batch", 1000)
        progress.advanced(100, float("nan"), 1.0)
        progress.job_ended(0, "failed", "no space on the disk")
    assert stream.getvalue().splitlines() == ["norm=batch: 1,000 steps", "norm=batch: failed, no space on the disk"]
    with PlainProgress(terminal(stream), clock) as progress:
        progress.job_started(0, "norm=none", 1)
    assert stream.getvalue().splitlines()[2:] == ["norm=none: 1 step"]


def test_the_live_display_shows_the_jobs_the_bars_and_leaves_nothing(
    terminal: Callable[[io.StringIO], Terminal],
) -> None:
    stream, clock = Screen(), Clock()
    sweep(LiveProgress(terminal(stream), clock), clock)
    written = stream.getvalue()
    assert "\x1b[2J" not in written
    assert written.count(HIDE_CURSOR) == written.count(SHOW_CURSOR) == 1
    assert written.index(HIDE_CURSOR) < written.index(SHOW_CURSOR)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    for part in (
        "600/1,000  loss 0.0017  valid 92.50 %",
        "0:08 left",
        "✓  norm=none seed=0",
        "∞  norm=batch",
        "1/2 jobs",
    ):
        assert part in text
    assert max(len(line) for line in re.split("[\r\n]", text)) <= 100
    assert written.rstrip("\n").endswith("\x1b[2K")  # the display was taken away, line by line


def test_each_round_of_jobs_is_counted_by_itself(terminal: Callable[[io.StringIO], Terminal]) -> None:
    stream, clock = Screen(), Clock()
    progress = LiveProgress(terminal(stream), clock)
    for number_of_jobs in (3, 2):
        progress.sweep_started(number_of_jobs)
        for index in range(number_of_jobs):
            clock.now += 2.0
            progress.job_ended(index, "done", "")
    progress.closed()
    counts = re.findall(r"(\d/\d) jobs", stream.getvalue())
    assert list(dict.fromkeys(counts))[-3:] == ["0/2", "1/2", "2/2"]


def test_what_is_printed_between_two_displays_stays(terminal: Callable[[io.StringIO], Terminal]) -> None:
    stream, clock = Screen(), Clock()
    progress = LiveProgress(terminal(stream), clock)
    for name in ("first", "second"):
        progress.sweep_started(2)
        clock.now += 2.0
        progress.job_started(0, "norm=batch", 10)
        progress.job_ended(0, "done", "")
        progress.closed()
        stream.write(f"the {name} card\n")
    first, second = re.split("the first card", stream.getvalue())
    assert UP in first  # the picture was taken away
    drawn_again, shown, _ = second.partition("1/2 jobs")
    assert shown
    assert UP not in drawn_again.partition("0/2 jobs")[0]


def test_long_work_is_told_in_a_log_too(
    terminal: Callable[[io.StringIO], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "LINE_SECONDS", 0.02)
    stream = io.StringIO()
    with display.working(terminal(stream)) as tell:
        for what in ("reading\x1b[2J", "probing"):
            tell(what)
            before = len(stream.getvalue())
            while stream.getvalue().count("\n", before) < 2:
                time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert list(dict.fromkeys(lines)) == [r"reading\x1b[2J", "probing"]
    time.sleep(0.1)
    assert len(stream.getvalue().splitlines()) == len(lines)  # nothing follows


def test_the_display_is_not_drawn_at_every_report(terminal: Callable[[io.StringIO], Terminal]) -> None:
    stream, clock = Screen(), Clock()
    with LiveProgress(terminal(stream), clock) as progress:
        progress.job_started(0, "norm=batch", 10_000)
        before = len(stream.getvalue())
        for step in range(1000):
            progress.advanced(step, 0.1, 1.0)
        assert len(stream.getvalue()) == before
        clock.now += 1.0
        progress.advanced(1000, 0.1, 1.0)
        assert len(stream.getvalue()) > before


@pytest.mark.parametrize("columns", ["12", "40", "60"])
def test_a_narrow_display_stays_within_its_columns(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Screen(), Clock()
    sweep(LiveProgress(Terminal(stream), clock), clock)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert max(len(line) for line in re.split("[\r\n]", text)) <= int(columns)


def test_what_is_no_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_progress(Screen()), LiveProgress)
    assert isinstance(make_progress(io.StringIO()), PlainProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress(Screen()), PlainProgress)


INTERRUPTED = """
import sys, time
from bnlab.report.progress import make_progress
with make_progress(sys.stderr) as progress:
    progress.job_started(0, "norm=batch", 1000)
    print("started", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_ctrl_c_leaves_the_cursor_visible() -> None:
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-c", INTERRUPTED]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True)
    os.close(theirs)
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    child.send_signal(signal.SIGINT)
    child.wait(30)
    child.stdout.close()
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # Linux ends a pseudo-terminal so
        pass
    os.close(ours)
    assert HIDE_CURSOR.encode() in written
    assert written.rindex(SHOW_CURSOR.encode()) > written.rindex(HIDE_CURSOR.encode())


def shown_last(screen: Screen) -> str:
    """The words of the last picture, without what moves the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue().rpartition(HIDE_CURSOR)[2])


def test_the_live_display_compares_the_arms_so_far(terminal: Callable[[io.StringIO], Terminal]) -> None:
    screen, clock = Screen(), Clock()
    progress = LiveProgress(terminal(screen), clock)
    progress.sweep_started(6)
    ends = [
        ("norm=none seed=0", 0.9),
        ("norm=none seed=1", 0.8),
        ("norm=batch seed=0", 0.975),
        ("norm=layer seed=0", None),
    ]
    for index, (label, accuracy) in enumerate(ends):
        clock.now += 5
        progress.job_started(index, label, 0)
        progress.job_ended(index, "diverged" if accuracy is None else "done", "it ended", accuracy)
    clock.now += 5
    progress.running(["norm=batch seed=1", "norm=layer seed=1", "a", "b", "c"])
    picture = shown_last(screen)
    progress.closed()
    assert re.search(r"norm=none +85\.00 %, 2 done\s", picture)
    assert re.search(r"norm=batch +97\.50 %, 1 done\s", picture)
    assert re.search(r"norm=layer +–, 1 lost\s", picture)
    assert "running: norm=batch seed=1; norm=layer seed=1; a; b and 1 more" in picture


@pytest.mark.slow
def test_a_sweep_on_a_terminal_ends_with_a_table_that_fits(tmp_path: Path) -> None:
    sweep = [*BNLAB, "train", "-m", "norm=batch,layer", "seed=0,1", *QUICK]
    with pseudo_terminal.Terminal(sweep, tmp_path, environment(TERM="xterm"), columns=80) as screen:
        assert screen.wait_for("jobs done", 300)
        *_, table = screen.text.rpartition("test acc %")
        end = screen.text.rpartition("───")[2].splitlines()[1:5]
    assert "step ms" in table
    rows = [line.split() for line in end]
    assert [row[1:4] for row in rows] == [["done", norm, seed] for norm in ("batch", "layer") for seed in "01"]
    assert bnlab("show", rows[0][0], cwd=tmp_path).returncode == 0
    assert all(len(line) <= 80 for line in end)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train", "norm=batch", *QUICK], ["check", "norm=batch"]], ids=["worker", "here"])
def test_torch_is_not_loaded_in_silence(words: list[str], tmp_path: Path) -> None:
    with pseudo_terminal.Terminal([*BNLAB, *words], tmp_path, environment(TERM="xterm"), columns=80) as screen:
        assert screen.wait_for("loading torch", 300)
        assert screen.text.partition("loading torch")[0].strip(" -\\|/") == ""  # it is the first that is said
