"""Whole processes: the allocator's settings, sweeps over the cores, the pause between jobs, start-up, a comparison."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from benchmarks import compare
from benchmarks.loops import BATCH
from benchmarks.pairing import Row, side_by_side

BNLAB = [sys.executable, "-m", "bnlab"]
_STEPS = """
import sys, time, torch
from benchmarks.loops import BATCH, images, network
from bnlab.data.batches import Batches
from bnlab.training.allocator import keep_freed_memory
from bnlab.training.loop import train_step
from bnlab.training.optim import optimizers
if sys.argv[1] == "kept":
    keep_freed_memory()
model = network("cnn").train()
optimizer = optimizers["sgd"]().make(model)
batches = list(Batches(images(64 * BATCH), batch_size=BATCH, channels_last=True).epoch(0))
for number, (pixels, labels) in enumerate(batches[:4] + batches):
    if number == 4:
        start = time.perf_counter()
    train_step(model, optimizer, torch.nn.functional.cross_entropy, pixels, labels, number)
print((time.perf_counter() - start) / len(batches) * 1e3)
"""


@dataclass(frozen=True)
class Seconds:
    """A whole process, or a stretch of one: median and range."""

    name: str
    median: float
    low: float
    high: float


def allocator(rounds: int = 4) -> list[Row]:
    """Milliseconds of a CNN's training step with glibc's own settings and with freed memory kept, in new processes."""

    def process(how: str) -> float:
        return float(subprocess.run([sys.executable, "-c", _STEPS, how], check=True, capture_output=True).stdout)

    contenders = {"glibc's own": lambda: process("own"), "freed memory kept": lambda: process("kept")}
    return side_by_side(contenders, "glibc's own", rounds)


def sweep(kind: str, steps: int, rounds: int = 3) -> list[Row]:
    """Images a second of two jobs on the digits: in turn on all cores, and side by side on half of them each.

    From the first job's first step to the end of the last one's training: the start of the processes is left out.
    """

    def jobs(launcher: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            words = [f"hydra/launcher={launcher}", f"model={kind}", f"trainer.steps={steps}", "eval.every=1000"]
            subprocess.run([*BNLAB, "train", "-m", "seed=0,1", *words], check=True, cwd=folder, capture_output=True)
            moments = [_moments(log) for log in Path(folder).glob("runs/*/*/run.log")]
        span = max(end for _, end in moments) - min(start for start, _ in moments)
        return len(moments) * steps * BATCH / span.total_seconds()

    return side_by_side({name: partial(jobs, name) for name in ("basic", "joblib")}, "basic", rounds, warmup=0)


def whole_processes() -> list[Seconds]:
    """Time the command line: its help, one training step, a comparison of 1,000 runs, and the pause between jobs."""
    with tempfile.TemporaryDirectory() as folder:
        compare.write_runs(Path(folder) / "records", 1000)
        found = [
            _timed("python -c pass", [sys.executable, "-c", "pass"], folder),
            _timed("bnlab --help", [*BNLAB, "--help"], folder),
            _timed("bnlab train trainer.steps=1", [*BNLAB, "train", "trainer.steps=1"], folder),
            _timed("bnlab compare, 1,000 runs", [*BNLAB, "compare", "records"], folder),
        ]
        return [*found, _between_jobs(Path(folder))]


def _timed(name: str, command: list[str], folder: str) -> Seconds:
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return _summed(name, seconds)


def _between_jobs(folder: Path) -> Seconds:
    """From the end of a job's training to the first step of the next, by their logs."""
    sweep = [*BNLAB, "train", "-m", "seed=0,1,2,3,4,5,6,7", "trainer.steps=20", "name=pause"]
    subprocess.run(sweep, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    runs = sorted((folder / "runs").glob("*-pause-*/*/run.log"), key=lambda log: int(log.parent.name))
    moments = [_moments(log) for log in runs]
    pauses = [(after[0] - before[1]).total_seconds() for before, after in itertools.pairwise(moments)]
    return _summed("between two jobs of a sweep", pauses)


def _moments(log: Path) -> tuple[datetime, datetime]:
    """Return when training began and when it was over."""
    lines = log.read_text().splitlines()
    stamps = [datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in (lines[0], lines[-1])]
    return stamps[0], stamps[1]


def _summed(name: str, seconds: list[float]) -> Seconds:
    return Seconds(name, statistics.median(seconds), min(seconds), max(seconds))
