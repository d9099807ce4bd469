"""A job is a folder: queued there before anything starts, taken by whoever is free, finished by `resume`."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import bnlab, environment
from helpers_runs import make_run

from bnlab.config import compose
from bnlab.errors import BusyError, ConfigError, EnvironmentFault, RecordError
from bnlab.experiment.run import InProcess, run
from bnlab.record.run_folder import RunFolder, queue
from bnlab.record.sweep_record import take_name, write_queue
from bnlab.runner import launchers, sweep
from bnlab.runner.supervisor import JobOptions
from bnlab.runner.task import Task
from bnlab.training.callbacks import Callback
from bnlab.training.job import Job, JobResult

TINY = ["norm=none", "model=mlp", "model.widths=[4]", "data.train_size=64", "data.valid_size=64", "trainer.steps=1"]
TINY += ["eval.probe_samples=32", "trainer.device=cpu", "trainer.threads=1"]


def statuses(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("*/status.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in paths]


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep whose command line was killed when all jobs were queued and none had begun; in `runs/sweep`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "carry_out", lambda *_: 0)
    assert sweep.launch(["seed=0,1,2", *TINY], True, None, JobOptions(inline=True)).code == 0
    (folder,) = tmp_path.glob("runs/2*")
    return folder.rename(tmp_path / "runs/sweep")


def test_every_job_is_queued_before_the_first_begins(waiting: Path) -> None:
    found = statuses(waiting)
    trees = compose.jobs(["seed=0,1,2", *TINY], multirun=True)
    assert [status["config"] for status in found] == trees
    assert [status["label"] for status in found] == ["seed=0", "seed=1", "seed=2"]
    assert {(status["state"], status["order"], status["pid"]) for status in found} == {("queued", None, None)}
    assert len({status["identity"] for status in found}) == 3
    assert (waiting / "1/config.yaml").read_text() == compose.as_yaml(trees[1])
    assert sorted(path.name for path in (waiting / "1").iterdir()) == [".lock", "config.yaml", "status.json"]


@pytest.mark.slow
def test_resume_does_what_was_queued_and_what_was_not_even_that(waiting: Path, tmp_path: Path) -> None:
    shutil.rmtree(waiting / "2")  # as after a kill between two folders
    listed = bnlab("resume", "runs/sweep", "--dry-run", cwd=tmp_path, supervised=True)
    assert [line.split()[-1] for line in listed.stdout.splitlines()[2:]] == ["queued", "queued", "new"]
    done = bnlab("resume", "runs/sweep", cwd=tmp_path, supervised=True)
    assert (done.returncode, done.stdout.count("  done  ")) == (0, 3), done.stderr
    assert {status["state"] for status in statuses(waiting)} == {"done"}
    assert len({status["order"] for status in statuses(waiting)}) == 3


def test_one_queued_job_is_done_alone(waiting: Path, tmp_path: Path) -> None:
    done = bnlab("resume", "runs/sweep/1", cwd=tmp_path)
    assert (done.returncode, done.stdout.count("  done  ")) == (0, 1), done.stderr
    assert [status["state"] for status in statuses(waiting)] == ["queued", "done", "queued"]


def test_queued_jobs_are_no_runs_to_compare(waiting: Path, tmp_path: Path) -> None:
    done = bnlab("compare", cwd=tmp_path)
    assert done.returncode == 1
    assert "3 jobs queued, none was started" in done.stderr
    make_run(tmp_path / "runs/other")
    done = bnlab("compare", "--strict", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "jobs queued, not started yet: 3" in done.stderr
    assert "queued" not in done.stdout
    shown = bnlab("show", "runs/sweep/0", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "queued, not started yet" in shown.stdout


def test_a_folder_is_checked_by_whoever_runs_it(waiting: Path) -> None:
    """What it says is data: another configuration is another run, and one that is none fails."""
    for number, change in enumerate(({"seed": 7}, {"_target_": "os.system"}, {"norm": []})):
        path = waiting / str(number) / "status.json"
        status = json.loads(path.read_text())
        path.write_text(json.dumps(status | {"config": status["config"] | change}))
    results = [run(Job(waiting / str(number)), Callback()) for number in range(3)]
    assert [result.state for result in results] == ["failed"] * 3
    assert "holds another run" in results[0].reason
    assert "no such key" in results[1].reason
    assert not list(waiting.glob("*/steps.csv"))
    assert "no job lies here" in run(Job(waiting / "absent"), Callback()).reason


def test_another_run_is_not_queued_over_one(tmp_path: Path) -> None:
    queue(tmp_path / "0", {"seed": 0}, "seed: 0\n", "a")
    before = (tmp_path / "0/status.json").read_bytes()
    with pytest.raises(RecordError, match="holds another run"):
        queue(tmp_path / "0", {"seed": 1}, "seed: 1\n", "b")
    with pytest.raises(RecordError, match="holds another run"):
        RunFolder(tmp_path / "0", "b")
    held = RunFolder(tmp_path / "0", "a")
    with pytest.raises(BusyError, match="in use by another process"):
        queue(tmp_path / "0", {"seed": 0, "name": "x"}, "", "a")
    held.release()
    queue(tmp_path / "0", {"seed": 0, "name": "x"}, "", "a")  # where its data lie, for instance
    assert json.loads((tmp_path / "0/status.json").read_text())["config"] == {"seed": 0, "name": "x"}
    (tmp_path / "0/status.json").write_bytes(before)
    queue(tmp_path / "0", {"seed": 0}, "", "a")
    assert (tmp_path / "0/status.json").read_bytes() == before, "nothing is new, nothing is written"


# ---------------------------------------------------------------- what travels


class Nobody:
    """A runner that was never to run anything here."""

    def __init__(self) -> None:
        self.callback = Callback()

    def agreed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def preflight(self, trees: Sequence[Mapping[str, Any]]) -> list[str]:
        raise AssertionError

    def run(self, job: Job) -> JobResult:
        raise AssertionError


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm", "ray"])
def test_what_a_launcher_carries_does_not_grow_with_the_jobs(
    tmp_path: Path, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[tuple[Task, Sequence[str]]] = []

    def distribute(task: Task, chosen: launchers.Settings, folder: Path, names: Sequence[str], *_: Any) -> None:
        handed.append((task, names))
        assert task.queue is None or take_name(task.queue) == "0"

    monkeypatch.setattr(launchers, "distribute", distribute)
    for count in (3, 300):
        folder = tmp_path / f"{count:03}"
        jobs = tuple(Job(folder / str(i), i) for i in range(count))
        for job in jobs:
            queue(job.folder, {"seed": job.index}, "", str(job.index))
        plan = sweep.Plan(folder, jobs, True, 1, (), (f"hydra/launcher={launcher}",), None, launcher)
        assert sweep.carry_out(plan, Nobody(), JobOptions()) == 1
        assert not list(folder.glob(".queue")), "it is of use to this command line only"
    (few, few_names), (many, names) = handed
    assert len(pickle.dumps(many)) == len(pickle.dumps(few))
    assert len(pickle.dumps(many)) < 3000
    assert len(names) == 300 if launcher == "submitit_slurm" else len(names) == len(few_names) or len(few_names) == 3


def take_all(path: Path) -> list[str]:
    return list(iter(lambda: take_name(path) or "", ""))


def test_each_name_is_taken_once(tmp_path: Path) -> None:
    names = [f"job {i}" for i in range(300)]
    write_queue(tmp_path / "queue", names)
    with Pool(4) as pool:
        taken = pool.map(take_all, [tmp_path / "queue"] * 4, chunksize=1)
    assert sorted(itertools.chain(*taken)) == sorted(names)
    odd = ["0", "a\nb\x1b[31m", "ä" * 127, '"']
    write_queue(tmp_path / "queue", odd)
    assert take_all(tmp_path / "queue") == odd
    (tmp_path / "link").symlink_to("queue")
    with pytest.raises(EnvironmentFault, match="link"):
        take_name(tmp_path / "link")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_many_jobs_are_done_by_as_many_processes_as_there_are_places(tmp_path: Path, launcher: str) -> None:
    chosen = f"hydra/launcher={launcher}"
    done = bnlab("train", "-m", chosen, "seed=range(40)", *TINY, cwd=tmp_path, supervised=True)
    assert (done.returncode, done.stdout.count("  done  ")) == (0, 40), done.stderr
    (folder,) = tmp_path.glob("runs/2*")
    assert len({status["pid"] for status in statuses(folder)}) <= 8
    carried = list(folder.glob(".submitit-*/*/*_submitted.pkl"))
    assert sum(path.stat().st_size for path in carried) < 2**20


@pytest.mark.slow
def test_ten_thousand_jobs_can_be_planned(tmp_path: Path) -> None:
    done = bnlab("train", "-m", "--dry-run", "seed=range(10000)", *TINY, cwd=tmp_path, timeout=600)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 10_002), done.stderr
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- in this very process

DEBUGGED = """
import sys
from bnlab.cli import main
from bnlab.training import loop
step_of = loop.train_step
def step(*values, **more):
    breakpoint()
    return step_of(*values, **more)
loop.train_step = step
sys.argv = ["bnlab", "train", *sys.argv[1:]]
main()
"""


def test_a_debugger_stops_inside_an_inline_job(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEBUGGED, "--inline", *TINY],
        input="p 6 * 7, len(values)\nc\n",
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "(42, " in done.stdout
    assert "  done  norm=none" in done.stdout


def test_an_inline_sweep_is_as_any_other(waiting: Path, tmp_path: Path) -> None:
    done = bnlab("resume", "runs/sweep", "--inline", cwd=tmp_path, supervised=True)
    assert (done.returncode, done.stdout.count("  done  ")) == (0, 3), done.stderr
    assert "2/3 seed=1: done, test" in done.stderr


def test_what_inline_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options in (JobOptions(inline=True, timeout=3), JobOptions(inline=True, retries=1)):
        with pytest.raises(ConfigError, match="need jobs in processes of their own"):
            sweep.launch(TINY, False, None, options)
    with pytest.raises(ConfigError, match="hydra/launcher=joblib: must be basic for --inline"):
        sweep.launch(["hydra/launcher=joblib", "seed=0,1", *TINY], True, None, JobOptions(inline=True))
    assert not list(tmp_path.iterdir())
    assert isinstance(InProcess().agreed(), AbstractContextManager)
