"""What is found of training with one late worker; without torch, for the terminal reads it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["averaged", "local"]  # gradients: averaged over the workers every step, or each worker's own
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class LateStep:
    """The first worker's step while the last is late: medians, and growths over no delay with their 95% intervals."""

    norm: str
    gradients: Mode
    delay_ms: float
    step_ms: float
    step_growth_ms: float
    step_growth_low: float
    step_growth_high: float
    forward_ms: float
    forward_growth_ms: float
    forward_growth_low: float
    forward_growth_high: float
    backward_ms: float
    optimizer_ms: float
    forward_collectives: int
    backward_collectives: int
    sent_bytes: int
    gradient_bytes: int  # of them for the average of the gradients


@dataclass(frozen=True)
class ParallelTime:
    """What a section came to; its steps are by strategy, then gradients, then delay, which begins at 0."""

    title: str
    setting: tuple[str, ...]
    workers: int
    steps: tuple[LateStep, ...]
    rounds: int
    stopped_by: Literal["precision", "budget"]
    seconds: float
