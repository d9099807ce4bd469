"""The whole command line killed with kill -9 at random moments: nothing is left running, and resume ends the same."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers_cli import BNLAB, bnlab, environment

pytestmark = pytest.mark.slow

SWEEP = ["train", "-m", "norm=batch,online", "model.dropout=0,0.3", "seed=0,1", "model=mlp", "model.widths=[16]"]
SWEEP += ["data.batch_size=32", "data.shift=1", "trainer.steps=300", "eval.every=1", "eval.probe_samples=256"]
SWEEP += ["trainer.threads=1", "trainer.device=cpu"]
JOBS = 8
TABLES = ("steps.csv", "evals.csv", "layers.csv")

# Checkpoints all the time, as in long runs; the product has no such switch.
OFTEN = """
import importlib.machinery, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name != "bnlab.training.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.CHECKPOINT_SECONDS, module.INTERVAL_SECONDS = 0.0, 0.01
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def tables(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return what each run left, by what it was: a sweep may number its jobs as it likes."""
    found = {}
    for run in folder.iterdir():
        if (run / "status.json").exists():
            status = json.loads((run / "status.json").read_text())
            assert status["state"] == "done", run
            found[status["identity"]] = {name: (run / name).read_bytes() for name in TABLES}
    return found


def marked(mark: str) -> list[int]:
    """Return the processes with `mark` in their environment, the dead that nobody has asked after left out."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def wait_for_steps(place: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a job trains, or the process is over."""
    start = time.time()
    while process.poll() is None and not any(path.stat().st_mtime > start for path in place.glob("runs/*/*/steps.csv")):
        time.sleep(0.01)


def kill_again_and_again(place: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill a sweep and each resume of it at random moments; a finished one is compared, and another begun.

    Returns how many sweeps were finished, and how many jobs had gone on from a checkpoint.
    """
    place.mkdir(parents=True)
    (place / "sitecustomize.py").write_text(OFTEN)
    often = {"PYTHONPATH": f"{place}:{environment()['PYTHONPATH']}", "OMP_NUM_THREADS": "1"}
    whole = bnlab(*SWEEP, "name=whole", supervised=True, cwd=place, **often)
    assert whole.returncode == 0, whole.stderr
    (folder,) = (place / "runs").glob("*-whole-sweep-*")
    wanted = tables(folder)
    assert len(wanted) == JOBS

    draw, done, finished, continued = random.Random(seed), 0, 0, 0
    resuming: Path | None = None
    while done < kills or resuming is not None:
        if resuming is None:
            before = set(place.glob("runs/2*"))
            command = SWEEP
        else:
            command = ["resume", str(resuming)]
        mark = f"BNLAB_TEST_MARK={secrets.token_hex(8)}"
        process = subprocess.Popen(
            [*BNLAB, *command],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**often) | dict([mark.split("=")]),
        )
        try:
            if done >= kills:
                wait = 100.0
            elif draw.random() < 0.3:
                wait = draw.uniform(0.0, 4.0)  # while it starts
            else:
                wait_for_steps(place, process)
                wait = draw.uniform(0.0, 1.0)
            out, err = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            end = time.monotonic() + 1.0
            while (left := marked(mark)) and time.monotonic() < end:
                time.sleep(0.02)
            assert not left
            process.communicate()
            if resuming is None:
                resuming = next(iter(set(place.glob("runs/2*")) - before), None)
                if resuming is not None and not (resuming / "sweep.json").exists():
                    resuming = None  # there was nothing to go on with yet
            continue
        assert process.returncode == 0, err
        assert out.count("  done  ") == JOBS
        resuming = resuming or next(iter(set(place.glob("runs/2*")) - before))
        assert tables(resuming) == wanted
        continued += sum("going on from step" in log.read_text() for log in resuming.glob("*/run.log"))
        assert not list(resuming.rglob(".*.tmp"))
        finished, resuming = finished + 1, None
    return finished, continued


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
def test_kills_of_the_sweep_at_random_moments(tmp_path: Path) -> None:
    finished, _ = kill_again_and_again(tmp_path / "place", 5, seed=1)
    assert finished >= 1
