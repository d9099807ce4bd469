"""A batch script's `bnlab train`: SIGUSR2 saves and requeues, and the restarted job goes on in the same folder."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from helpers_cli import Command, start
from helpers_training import train

pytestmark = pytest.mark.slow

LONG = ["model=mlp", "model.widths=[16]", "data.batch_size=32", "trainer.steps=3000", "eval.every=20",
        "eval.probe_samples=256", "trainer.device=cpu"]  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment as of Slurm's job 77, with a `scontrol` that notes what it is asked."""
    told = tmp_path / "bin/scontrol"
    told.parent.mkdir()
    told.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    told.chmod(0o755)
    return {"PATH": f"{told.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "OMP_NUM_THREADS": "1"}


def begin(place: Path, environment: dict[str, str], *words: str) -> Command:
    return start("train", *LONG, *words, cwd=place, supervised=True, **environment)


def until_steps(place: Path, process: Command) -> Path:
    """Wait until a run has written steps; return its folder."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        for table in place.glob("runs/**/steps.csv"):
            if table.read_text().count("\n") > 2:
                return table.parent
        time.sleep(0.02)
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize(
    "words",
    [["seed=1"], ["-m", "seed=1,2"], ["-m", "seed=1,2", "hydra/launcher=joblib"]],
    ids=["run", "sweep", "joblib"],
)
def test_a_requeued_job_goes_on_in_its_folder(tmp_path: Path, cluster: dict[str, str], words: list[str]) -> None:
    first = begin(tmp_path, cluster, *words)
    folder = until_steps(tmp_path, first)
    first.send_signal(signal.SIGUSR2)
    _, said = first.communicate(timeout=300)
    assert first.returncode == 128 + signal.SIGUSR2
    assert "Traceback" not in said
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert (folder / "checkpoint.pt").exists()

    second = begin(tmp_path, cluster | {"SLURM_RESTART_COUNT": "1"}, *words)
    printed, said = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert len(list(tmp_path.glob("runs/2*"))) == 1
    assert printed.count("  done  ") == (2 if "-m" in words else 1)
    assert "going on from step" in (folder / "run.log").read_text()
    seed = json.loads((folder / "status.json").read_text())["config"]["seed"]  # of two at once either may be first
    train([f"seed={seed}", *LONG], tmp_path / "whole")
    for table in ("steps.csv", "evals.csv", "layers.csv"):
        assert (folder / table).read_bytes() == (tmp_path / "whole" / table).read_bytes(), table


def test_another_command_line_of_the_same_job_begins_anew(tmp_path: Path, cluster: dict[str, str]) -> None:
    short = ["trainer.steps=5"]
    again = cluster | {"SLURM_RESTART_COUNT": "1"}
    for environment, seed in ((cluster, 1), (again, 2), (cluster | {"SLURM_JOB_ID": "78"}, 1), (again, 1)):
        process = begin(tmp_path, environment, f"seed={seed}", *short)
        assert process.communicate(timeout=300)[1] is not None
        assert process.returncode == 0
    assert len(list(tmp_path.glob("runs/2*"))) == 3  # the last went on in the first one's, which was done


def test_slurm_that_refuses_is_quoted(tmp_path: Path, cluster: dict[str, str]) -> None:
    (tmp_path / "bin/scontrol").write_text('#!/bin/sh\necho "Job is not requeueable" >&2; exit 1\n')
    process = begin(tmp_path, cluster)
    until_steps(tmp_path, process)
    process.send_signal(signal.SIGUSR2)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "scontrol requeue 77: Job is not requeueable" in said
