"""Small benches, and the models that they make."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.bench import stepper as stepping
from bnlab.bench.arms import BenchSection, read
from bnlab.bench.engine import ContestTime
from bnlab.bench.pairing import Blocks
from bnlab.experiment.setup import to_device
from bnlab.report.bench_report import bench_table
from bnlab.report.console import Terminal

CPU = torch.device("cpu")
SMALL = ["data=digits", "model.widths=[4,8]", "trainer.device=cpu", "data.train_size=300", "data.batch_size=32"]


def ignore(turns: Blocks[str], left: float) -> None:
    pass


def sections(*overrides: str) -> list[BenchSection]:
    return read([*SMALL, *overrides])[1]


class Watched:
    """The models that `stepper` makes, kept to be looked at."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.models: list[nn.Module] = []
        patch.setattr(stepping, "to_device", self._kept)

    def _kept(self, *arguments: Any) -> nn.Module:
        self.models.append(to_device(*arguments))
        return self.models[-1]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def table(found: ContestTime, width: int, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    out = Terminal(stream)
    out.print(bench_table(found, out))
    stream.seek(0)
    return stream.read().splitlines()
