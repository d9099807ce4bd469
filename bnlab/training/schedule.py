"""Learning-rate schedules: each gives a factor on the learning rate from the step and the length of the run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from bnlab.errors import ConfigError
from bnlab.registry import Registry
from bnlab.schema import param


class ScheduleSpec(ABC):
    """A schedule is a factor on the learning rate, from the step and the number of steps."""

    name: ClassVar[str]

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """Return the factor of `step` in 0 .. total - 1."""

    def rate_of(self, lr: float, total: int) -> Callable[[int], float]:
        """Return the learning rate as a function of the step."""
        return lambda step: lr * self.factor(step, total)


schedules: Registry[ScheduleSpec] = Registry("schedule")


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@schedules.register("constant")
@dataclass(frozen=True, kw_only=True)
class Constant(ScheduleSpec):
    """The same learning rate throughout."""

    def factor(self, step: int, total: int) -> float:
        return 1.0


@schedules.register("one_cycle")
@dataclass(frozen=True, kw_only=True)
class OneCycle(ScheduleSpec):
    """Cosine up from `start` to 1, then cosine down to `end` (Smith and Topin 2018, as torch's OneCycleLR)."""

    warmup: float = param(0.3, "share of the run that goes up", above=0.0, high=0.99)
    start: float = param(0.04, "factor on optim.lr at the first step", above=0.0, high=1.0)
    end: float = param(4e-6, "factor on optim.lr at the last step", low=0.0, high=1.0)

    def factor(self, step: int, total: int) -> float:
        peak = self.warmup * total - 1
        if step <= peak:
            return _cosine(self.start, 1.0, step / peak if peak > 0 else 1.0)
        return _cosine(1.0, self.end, (step - peak) / max(total - 1 - peak, 1e-12))


@schedules.register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(ScheduleSpec):
    """Cosine down from 1 towards `end` (Loshchilov and Hutter 2017, one period)."""

    end: float = param(0.0, "factor that the last step would be followed by", low=0.0, high=1.0)

    def factor(self, step: int, total: int) -> float:
        return _cosine(1.0, self.end, step / total)


@schedules.register("step")
@dataclass(frozen=True, kw_only=True)
class Step(ScheduleSpec):
    """Multiplied by `gamma` at each milestone, a share of the run."""

    milestones: tuple[float, ...] = param((0.5, 0.75), "shares of the run", above=0.0, high=1.0)
    gamma: float = param(0.1, "factor at each milestone", above=0.0, high=1.0)

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(self.milestones):
            raise ConfigError(f"schedule.milestones={list(self.milestones)}: must rise")

    def factor(self, step: int, total: int) -> float:
        passed = sum(step >= milestone * total for milestone in self.milestones)
        return float(self.gamma**passed)
