"""Faults around a process: Ctrl-C while it starts, Ctrl-Z, a folder that is moved, what a killed one left behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers_cli import BNLAB, QUICK, Command, bnlab, environment, start
from helpers_runs import make_run

from bnlab import timing
from bnlab.errors import ConfigError, EnvironmentFault
from bnlab.export.place import fresh_place
from bnlab.record import run_folder
from bnlab.record.plain_files import lock
from bnlab.record.run_folder import RunFolder, queue, read_status
from bnlab.runner.monitor import summarize
from bnlab.runner.resume import resume
from bnlab.runner.supervisor import JobOptions, Supervisor
from bnlab.training import checkpoint
from bnlab.training.job import JobResult

LONG = [word for word in QUICK if not word.startswith("trainer.steps")] + ["trainer.steps=100000"]
COMMANDS = [["compare"], ["show", "runs/0"], ["export", "csv"], ["train", "--cfg", "job"], ["resume", "runs/0"]]
COMMANDS += [["probe", "runs/0"], ["list"], ["data", "list"], ["guide"], ["doctor"], ["check", "norm=layer"]]


def until(true: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_while_modules_load_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "loading.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    code = "import bnlab.interrupts, signal, sys\nsys.path.insert(0, sys.argv[1])\nimport loading\nprint('on')"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.slow
def test_ctrl_c_at_any_moment_is_quiet(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/0")
    draw = random.Random(0)
    for arguments in COMMANDS:
        whole = time.monotonic()
        assert bnlab(*arguments, cwd=tmp_path, fresh=True).returncode in (0, 1)
        whole = time.monotonic() - whole
        for part in range(2):
            shutil.rmtree(tmp_path / "export", ignore_errors=True)
            with subprocess.Popen(
                [*BNLAB, *arguments], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process:
                time.sleep(max(0.1, draw.uniform(part * whole / 2, (part + 1) * whole / 2)))
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=120)
            assert process.returncode in (0, 1, 130, -signal.SIGINT), (arguments, err)
            own = b"bnlab/cli" in err and b"bnlab/interrupts.py" not in err  # before that it is Python's own start
            assert b"Traceback" not in err or not own, (arguments, err)
            assert not list(tmp_path.glob(".*.tmp"))


# ---------------------------------------------------------------- Ctrl-Z


def continued_after(seconds: float) -> None:
    """Stop this process as Ctrl-Z does; another continues it."""
    waker = f"import os, signal, time\ntime.sleep({seconds})\nos.kill({os.getpid()}, signal.SIGCONT)"
    with subprocess.Popen([sys.executable, "-c", waker]):
        os.kill(os.getpid(), signal.SIGTSTP)


def test_a_pause_counts_in_no_time_out_and_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, watch = Supervisor(JobOptions()), timing.Stopwatch(torch.device("cpu"))
    before, began = supervisor._seconds(), time.monotonic()
    with supervisor._pausing():
        continued_after(0.3)
    passed = time.monotonic() - began
    assert supervisor._paused > 0.2
    assert supervisor._seconds() - before == pytest.approx(passed - supervisor._paused, abs=0.05)
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL

    monkeypatch.setattr(timing, "_paused_ns", 0)
    signal.signal(signal.SIGTSTP, timing.pause)
    try:
        began = time.monotonic()
        watch.start()
        continued_after(0.3)
        watch.stop()
        passed = time.monotonic() - began
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    assert timing._paused_ns > 2e8
    assert watch.seconds == pytest.approx(passed - timing._paused_ns / 1e9, abs=0.05)


@contextlib.contextmanager
def training(place: Path) -> Iterator[tuple[Command, Path]]:
    """A long run that has begun, in a worker of its own."""
    with start("train", *LONG, cwd=place, supervised=True, session=True) as command:
        until(lambda: [path for path in place.glob("runs/*/steps.csv") if path.stat().st_size > 1000])
        (table,) = place.glob("runs/*/steps.csv")
        yield command, table.parent


@pytest.mark.slow
def test_ctrl_z_stops_the_worker_and_fg_goes_on(tmp_path: Path) -> None:
    with training(tmp_path) as (command, run):
        worker = json.loads((run / "status.json").read_text())["pid"]
        command.send_signal(signal.SIGTSTP)
        for process in (worker, command.pid):
            until(lambda p=process: Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        rows = (run / "steps.csv").stat().st_size
        time.sleep(0.5)
        assert (run / "steps.csv").stat().st_size == rows
        command.send_signal(signal.SIGCONT)
        until(lambda: (run / "steps.csv").stat().st_size > rows)
        command.send_signal(signal.SIGINT)
        assert command.wait() == 130


# ---------------------------------------------------------------- moved


@pytest.mark.slow
def test_a_run_that_is_moved_while_it_trains_ends_with_the_reason_and_goes_on_there(tmp_path: Path) -> None:
    with training(tmp_path) as (command, run):
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        out, err = command.communicate()
    name = f"runs/{run.name}"
    assert (command.returncode, out) == (1, "")
    assert f"{name} failed: cannot write {name}/" in err
    assert f"{name}: is not there any more, it was moved or removed while its jobs ran" in err
    assert not (tmp_path / "runs").exists()
    done = bnlab("resume", f"elsewhere/{run.name}", "--dry-run", cwd=tmp_path)
    assert (done.returncode, "killed" in done.stdout) == (0, True)


def test_a_job_whose_folder_was_removed_while_its_sweep_ran_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "0")
    ended = {tmp_path / name: JobResult("done") for name in ("0", "1")}
    assert summarize(tmp_path, True, "was not started", None, ended) == 1
    shown = capsys.readouterr().err
    assert f"{tmp_path / '1'}: is not there any more, it was moved or removed while its jobs ran\n" in shown
    assert "1 of 2 jobs done" in shown
    assert "to finish: bnlab resume" in shown


# ---------------------------------------------------------------- what is left behind


def test_of_two_exports_to_one_place_the_later_is_told_that_it_is_taken(tmp_path: Path) -> None:
    place = tmp_path / "ex"
    with (
        pytest.raises(ConfigError, match="ex exists\nchoose another place"),
        fresh_place(place),
        fresh_place(place) as to,
    ):
        (to / "runs.csv").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"ex", "runs.csv"}


def test_what_killed_exports_left_is_removed_and_what_lives_is_not(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".ex.1.tmp", tmp_path / ".ex.2.tmp"
    for folder in (dead, alive, tmp_path / ".other.1.tmp"):
        folder.mkdir()
        (folder / "runs.csv").touch()
    held = os.open(alive, os.O_RDONLY)
    assert lock(held)
    with fresh_place(tmp_path / "ex") as folder:
        with fresh_place(tmp_path / "ex") as second:  # at once, to the same place
            assert folder.exists()
            assert folder != second
        (folder / "runs.csv").touch()
        shutil.rmtree(tmp_path / "ex")
    os.close(held)
    assert {path.name for path in tmp_path.iterdir()} == {"ex", ".ex.2.tmp", ".other.1.tmp"}


def test_what_a_killed_recalibration_left_is_removed(tmp_path: Path) -> None:
    for name in (".w.pt.1.tmp", ".w.pt.sha256.1.tmp"):
        (tmp_path / name).write_bytes(b"x")
    checkpoint.save_file(tmp_path / "w.pt", {"w": torch.ones(1)})
    assert {path.name for path in tmp_path.iterdir()} == {"w.pt", "w.pt.sha256"}


# ---------------------------------------------------------------- no room, no permission


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let a file of that name not be written, as on a full disk or in a folder of another user."""
    plain, json_file = run_folder.open_plain, run_folder.write_json

    def fault(path: Path) -> EnvironmentFault:
        return EnvironmentFault(f"cannot write {path}: No space left on device")

    def open_plain(path: Path, flags: int) -> int:
        if path.name == name and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, flags)

    def write_json(path: Path, *rest: object, **more: object) -> None:
        if path.name == name:
            raise fault(path)
        json_file(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(run_folder, "open_plain", open_plain)
    monkeypatch.setattr(run_folder, "write_json", write_json)


def test_a_done_run_of_another_user_is_shown(
    tmp_path: Path, trained_sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Path(shutil.copytree(next(trained_sweep.glob("runs/2*")), tmp_path / "sweep"))
    status = json.loads((sweep / "1/status.json").read_text())
    (sweep / "1/status.json").write_text(json.dumps(status | {"state": "running"}))  # killed after its summary
    refuse(monkeypatch, ".lock")
    for folder in (sweep, sweep / "0", sweep / "1"):
        assert resume(folder, (), JobOptions(inline=True)) == 0
        out, err = capsys.readouterr()
        assert f"{folder}: nothing is left to do" in err
        assert "failed" not in out + err
    with pytest.raises(EnvironmentFault, match=r"cannot write .*: Permission denied"):
        resume(sweep, ("seed=0,1,2",), JobOptions(inline=True))


def test_what_is_said_at_the_end_is_what_the_summary_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "runs/0", state="running")
    ended = {run: JobResult("failed", "cannot write steps.csv: No space left on device\ncheck free space")}
    assert summarize(tmp_path / "runs", True, "", None, ended) == 1
    assert f"{run} failed: cannot write steps.csv: No space left on device\n" in capsys.readouterr().err

    queue(tmp_path / "1", {"seed": 0}, "seed: 0\n", "identity")
    folder = RunFolder(tmp_path / "1", "identity")
    refuse(monkeypatch, "status.json")
    folder.finish("done", summary={"state": "done", "curve": {}})  # it is over once its summary is there
    assert (read_status(tmp_path / "1") or {})["state"] == "running"
    with pytest.raises(EnvironmentFault):
        queue(tmp_path / "2", {"seed": 0}, "seed: 0\n", "identity")
