"""Runs that are stopped at a chosen step, and whether two runs are the same to the last bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import train
from torch import Tensor

from bnlab.training import checkpoint
from bnlab.training.callbacks import Callback
from bnlab.training.job import Stop

# Epochs of 5 batches, the last with 8 samples; evaluations after 0, 4, 8, 12, 16 and 17 steps.
SHORT = ("data.train_size=200", "data.batch_size=48", "trainer.steps=17", "eval.every=0.8", "eval.probe_samples=96")
SHORT += ("trainer.device=cpu", "trainer.threads=1", "trainer.label_smoothing=0.1", "data.shift=1", "model.dropout=0.2")
MLP = ("model=mlp", "model.widths=[16,8]")
TABLES = ("steps.csv", "evals.csv", "layers.csv")
OF_THE_CLOCK = ("train_seconds", "eval_seconds", "discrepancy_seconds", "discrepancy_share", "wall_seconds")
OF_THE_CLOCK += ("warmup_seconds", "step_ms", "refresh_ms", "images_per_second", "environment")


class StopAt(Callback):
    """Asks for an end after chosen steps, or after the evaluation at one."""

    def __init__(self, stop: Stop, *, step: int | None = None, evaluation: int | None = None) -> None:
        self.stop, self.step, self.evaluation = stop, step, evaluation

    def advanced(self, step: int, loss: float, images_per_second: float) -> None:
        if step == self.step:
            self.stop.request()

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.evaluation:
            self.stop.request()


def interrupted(overrides: Sequence[str], folder: Path, **where: int) -> None:
    """Train until a stop after a step or an evaluation; `where` without either: before the first."""
    stop = Stop()
    stop.requested = not where
    with pytest.raises(KeyboardInterrupt):
        train(overrides, folder, stop, StopAt(stop, **where))
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert checkpoint.present(folder)


def assert_equal(resumed: Path, whole: Path) -> None:
    """Compare tables byte by byte, all state bit by bit, and the figures that no clock had a part in."""
    for table in (*TABLES, *(["meters.csv"] if (whole / "meters.csv").exists() else [])):
        assert (resumed / table).read_bytes() == (whole / table).read_bytes(), table
    one, other = checkpoint.load(resumed), checkpoint.load(whole)
    for part in ("step", "model", "optimizer", "random", "unnormalizable", "calibration", "evaluated", "ended"):
        assert bits(one[part]) == bits(other[part]), part
    assert bits((one.get("panel") or {}).get("memories")) == bits((other.get("panel") or {}).get("memories"))
    assert plain_summary(resumed) == plain_summary(whole)
    assert not list(resumed.glob(".*.tmp"))
    steps = [line.partition(",")[0] for line in (resumed / "times.csv").read_text().splitlines()[1:]]
    assert steps == [line.partition(",")[0] for line in (whole / "steps.csv").read_text().splitlines()[1:]]


def bits(value: Any) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, (list, tuple)) else value


def plain_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    summary["curve"].pop("seconds")
    for meter in summary.get("meters", {}).values():
        meter.pop("seconds", None)
    return {key: value for key, value in summary.items() if key not in OF_THE_CLOCK}
