"""Train in this process, as a supervised worker would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnlab.config import compose
from bnlab.experiment import run
from bnlab.experiment.config import identity, parse_config
from bnlab.experiment.setup import bundle_of
from bnlab.record.run_folder import queue
from bnlab.training.callbacks import Callback
from bnlab.training.job import Job, JobResult, Stop


def train(
    overrides: Sequence[str], folder: Path, stop: Stop | None = None, callback: Callback | None = None
) -> JobResult:
    """Train what `overrides` come to in `folder`, or go on with what lies there."""
    return run.run(queued(overrides, folder), callback or Callback(), stop)


def queued(overrides: Sequence[str], folder: Path) -> Job:
    """Return the job that `overrides` come to, written into `folder`."""
    (tree,) = compose.jobs(overrides, multirun=False)
    known = identity(tree, bundle_of(parse_config(tree).data).fingerprint)
    queue(folder, tree, compose.as_yaml(tree), known)
    return Job(folder)
