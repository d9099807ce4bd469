"""Train in this process, as a supervised worker would, or the loop alone, in float64."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.config import compose
from bnlab.data.bundle import Split
from bnlab.experiment import run
from bnlab.experiment.config import identity, parse_config
from bnlab.experiment.setup import bundle_of
from bnlab.record.run_folder import queue
from bnlab.record.tables import Cell
from bnlab.training.callbacks import Callback
from bnlab.training.evaluation import Findings
from bnlab.training.job import Job, JobResult, Stop
from bnlab.training.outcome import Recorder


def train(
    overrides: Sequence[str], folder: Path, stop: Stop | None = None, callback: Callback | None = None
) -> JobResult:
    """Train what `overrides` come to in `folder`, or go on with what lies there."""
    return run.run(queued(overrides, folder), callback or Callback(), stop)


def queued(overrides: Sequence[str], folder: Path) -> Job:
    """Return the job that `overrides` come to, written into `folder`."""
    tree, known = _composed(tuple(overrides), os.getcwd())
    queue(folder, tree, compose.as_yaml(tree), known)
    return Job(folder)


@cache
def _composed(overrides: tuple[str, ...], _place: str) -> tuple[dict[str, Any], str]:
    """Return the configuration and its identity: once for all the times that a test goes on with a run."""
    (tree,) = compose.jobs(overrides, multirun=False)
    return tree, identity(tree, bundle_of(parse_config(tree).data).fingerprint)


def digits(samples: int) -> Split:
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (samples, 1, 8, 8), generator=draw, dtype=torch.uint8)
    return Split(images, torch.randint(0, 10, (samples,), generator=draw))


class Kept(Recorder):
    """A recorder that keeps the losses and the last checkpoint."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.state: dict[str, Any] = {}

    def append(self, table: str, rows: Sequence[Sequence[Cell]]) -> None:
        if table == "steps":
            self.losses += [float(row[2]) for row in rows]

    def checkpoint(self, state: dict[str, Any]) -> None:
        self.state = state["model"]


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


class NoEvaluation:
    def evaluate(self, model: nn.Module) -> Findings:
        return Findings([], {"probe": []})
