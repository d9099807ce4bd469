"""Train in this process, as a supervised worker would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnlab import hydra_app, worker
from bnlab.jobs import Ending, Stop
from bnlab.sweep import job_of
from bnlab.watcher import Watcher


def train(overrides: Sequence[str], folder: Path, stop: Stop | None = None, watcher: Watcher | None = None) -> Ending:
    """Train what `overrides` come to in `folder`, or go on with what lies there."""
    (tree,) = hydra_app.jobs(overrides, multirun=False)
    return worker.run(job_of(folder, tree, "", 0, ""), watcher or Watcher(), stop)
