"""Train in this process, as a supervised worker would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnlab.config import compose
from bnlab.experiment import run
from bnlab.runner.sweep import job_of
from bnlab.training.callbacks import Callback
from bnlab.training.job import JobResult, Stop


def train(
    overrides: Sequence[str], folder: Path, stop: Stop | None = None, callback: Callback | None = None
) -> JobResult:
    """Train what `overrides` come to in `folder`, or go on with what lies there."""
    (tree,) = compose.jobs(overrides, multirun=False)
    return run.run(job_of(folder, tree, "", 0, ""), callback or Callback(), stop)
