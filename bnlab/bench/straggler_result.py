"""What a training with a straggler, one late worker, comes to; without torch, for the terminal reads it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from bnlab.interval import Interval

Mode = Literal["averaged", "local"]  # gradients: averaged over the workers every step, or each worker's own
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class StragglerStep:
    """The first worker's step while the last is late: medians in ms, and growths over no delay."""

    norm: str
    gradients: Mode
    delay_ms: float
    step_ms: float
    step_growth: Interval
    forward_ms: float
    forward_growth: Interval
    backward_ms: float
    optimizer_ms: float
    forward_collectives: int
    backward_collectives: int
    sent_bytes: int
    gradient_bytes: int  # of them for the average of the gradients
    growth_by_block: tuple[float, ...] = ()  # medians of the step's growth, each of some rounds in a row

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> StragglerStep:
        """Return the step that `asdict` came from."""
        growths = {key: Interval(**plain[key]) for key in ("step_growth", "forward_growth")}
        return cls(**{**plain, **growths, "growth_by_block": tuple(plain["growth_by_block"])})

    def figures(self) -> dict[str, Any]:
        """Return plain values, of an interval three: `step_growth_ms`, `step_growth_low`, `step_growth_high`."""
        flat: dict[str, Any] = {}
        for key, value in vars(self).items():
            if isinstance(value, Interval):
                flat |= {f"{key}_ms": value.value, f"{key}_low": value.low, f"{key}_high": value.high}
            elif key != "growth_by_block":
                flat[key] = value
        return flat


@dataclass(frozen=True)
class StragglerTime:
    """What a section came to; its steps are by strategy, then gradients, then delay, which begins at 0."""

    title: str
    setting: tuple[str, ...]
    workers: int
    steps: tuple[StragglerStep, ...]
    rounds: int
    stopped_by: Literal["precision", "budget"]
    seconds: float
