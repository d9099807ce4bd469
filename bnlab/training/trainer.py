"""How a run is trained and on what: its keys, and what they make of the forward pass and the loss."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.errors import ConfigError
from bnlab.schema import param

LOST_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How a run is trained and on what."""

    epochs: float = param(
        10.0, "passes over the training split, or a fraction; the recipe sets it", above=0.0, high=1e6
    )
    steps: int | None = param(None, "optimizer steps; when given, epochs are not looked at", low=1, high=10**9)
    accumulate: int = param(
        1, "parts of a batch that go through the model one by one, gradients added up; a norm sees one", low=1
    )
    label_smoothing: float = param(0.0, "share of the target spread over all classes", low=0.0, high=0.99)
    device: str = param("auto", "auto, cpu, cuda or cuda:N; auto takes CUDA where there is one")
    threads: int | None = param(None, "CPU threads of torch; null leaves torch's choice", low=1, high=1024)
    precision: Literal["float32", "bfloat16"] = param("float32", "bfloat16 runs the forward pass under autocast")
    compile: bool = param(False, "compile the training step's forward and backward with torch.compile")
    channels_last: bool = param(True, "lay images out as N, H, W, C in memory; the order of speeds depends on it")
    distributed: bool = param(False, "share each batch among the processes that torchrun started")
    stop_when_lost: bool = param(
        False, f"diverged is also a loss above 3 ln(classes), and above the first one, {LOST_STEPS} steps in a row"
    )
    timeout: float = param(300.0, "seconds to wait for another worker, then the run fails", low=1.0, high=1e6)

    def __post_init__(self) -> None:
        kind, _, index = self.device.partition(":")
        if not (self.device in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdecimal())):
            raise ConfigError(f"trainer.device={self.device}: must be auto, cpu, cuda or cuda:N")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the run, at least one."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * steps_per_epoch))

    def lost_above(self, num_classes: int) -> float | None:
        """Return the loss in nats above which a step is lost: three times that of a guess; None where none is."""
        return 3 * math.log(num_classes) if self.stop_when_lost else None


def forward_of(model: nn.Module, config: TrainerConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the model's forward pass as training calls it: compiled and in lower precision where asked."""
    forward: Callable[[Tensor], Tensor] = torch.compile(model) if config.compile else model
    if config.precision == "float32":
        return forward

    def under_autocast(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return forward(images)

    return under_autocast


def precision_of(config: TrainerConfig, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Return the context that evaluations run in: the precision of training."""
    if config.precision == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


def loss_function(config: TrainerConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return mean cross-entropy in nats, with label smoothing where asked."""
    if config.label_smoothing == 0:
        return F.cross_entropy
    return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
