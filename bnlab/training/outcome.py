"""What came of a training so far, as a checkpoint keeps it and as its summary tells it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from bnlab.measure.by_layer import LayerGap
from bnlab.record.tables import Cell

WARMUP_STEPS = 10  # kept and marked, but left out of the step-time figures


class Recorder:
    """Where a training leaves its rows and checkpoints; this one, of every rank but the first, looks away."""

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of its tables, that a checkpoint goes with."""
        return {}

    def append(self, table: str, rows: Sequence[Sequence[Cell]]) -> None:
        """Add rows to a table of `run_folder.TABLES`."""

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep what the steps to come depend on."""


def score_of(curve: Mapping[str, Sequence[float]]) -> float:
    """Return the last validation accuracy of a curve, or training accuracy without a validation split."""
    return curve.get("valid.accuracy", curve["train.accuracy"])[-1]


@dataclass
class Outcome:
    """What came of a training; the curve has one entry an evaluation."""

    state: Literal["done", "diverged"] = "done"
    steps: int = 0
    epochs: float = 0.0
    diverged_at: int | None = None
    error: str | None = None  # why it diverged
    first_loss: float | None = None  # with `trainer.stop_when_lost`
    lost_steps: int = 0  # of these the last ones, in a row
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    discrepancy_seconds: float = 0.0  # of these for what tells training mode from evaluation mode
    step_ms: dict[str, float] | None = None
    images_per_second: float | None = None
    warmup_seconds: float = 0.0
    refresh_ms: float | None = None  # median of the refreshes of statistics inside steps
    curve: dict[str, list[float]] = field(default_factory=dict)
    layers: list[list[LayerGap]] = field(default_factory=list)  # an entry an evaluation, against the test probe

    readings: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # of a meter: `step` and its figures
    meter_seconds: dict[str, float] = field(default_factory=dict)

    def take_readings(self, step: int, meter: str, figures: Mapping[str, float], seconds: float) -> None:
        """Add what a meter read of the network after `step` steps, and what it took; a figure is there every time."""
        curves = self.readings.setdefault(meter, {})
        for name, value in {"step": step, **figures}.items():
            curves.setdefault(name, []).append(value)
        self.meter_seconds[meter] = self.meter_seconds.get(meter, 0.0) + seconds

    def as_plain(self) -> dict[str, Any]:
        """Return it as values that a checkpoint can hold."""
        return asdict(self)

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Outcome:
        """Return the outcome that `as_plain` came from."""
        layers = [[LayerGap(**gap) for gap in gaps] for gaps in plain["layers"]]
        return cls(**{**plain, "layers": layers})

    def pace(self, pace: Pace) -> None:
        """Put the figures of its steps in."""
        self.warmup_seconds = pace.warmup_ms / 1e3
        if pace.refresh_ms:
            self.refresh_ms = statistics.median(pace.refresh_ms)
        if len(pace.step_ms) > 1:
            cuts = statistics.quantiles(pace.step_ms, n=10, method="inclusive")
            self.step_ms = {"median": statistics.median(pace.step_ms), "p10": cuts[0], "p90": cuts[-1]}
            self.images_per_second = pace.images_per_second


@dataclass
class Pace:
    """How long steps took; those of the warm-up are kept apart."""

    step_ms: list[float] = field(default_factory=list)
    refresh_ms: list[float] = field(default_factory=list)
    warmup_ms: float = 0.0
    busy_ms: float = 0.0  # of steps and of what they waited for their batches
    busy_images: int = 0

    def take(self, first: int, times: Sequence[tuple[float, float]], batch_size: Callable[[int], int]) -> None:
        """Count steps from `first` on by their (data, step) milliseconds."""
        for step, (data, ms) in enumerate(times, first):
            if step < WARMUP_STEPS:
                self.warmup_ms += data + ms
            else:
                self.step_ms.append(ms)
                self.busy_ms += data + ms
                self.busy_images += batch_size(step)

    @property
    def images_per_second(self) -> float:
        return self.busy_images / self.busy_ms * 1e3 if self.busy_ms else 0.0

    def as_plain(self) -> dict[str, Any]:
        """Return it as values that a checkpoint can hold; many numbers are read faster from a tensor."""
        return vars(self) | {"step_ms": torch.tensor(self.step_ms, dtype=torch.float64)}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Pace:
        """Return the pace that `as_plain` came from."""
        return cls(**{**plain, "step_ms": plain["step_ms"].tolist()})
