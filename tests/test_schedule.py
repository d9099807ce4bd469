"""Schedules against torch's own, step by step."""

from __future__ import annotations

import pytest
import torch

from bnlab.errors import ConfigError
from bnlab.training.schedule import Constant, Cosine, OneCycle, ScheduleSpec, Step, schedules

LR, TOTAL = 0.3, 137


def rates(schedule: ScheduleSpec, total: int = TOTAL) -> list[float]:
    return [schedule.rate_of(LR, total)(step) for step in range(total)]


def torch_rates(make: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(TOTAL):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_one_cycle_is_torchs() -> None:
    ours = rates(OneCycle(warmup=0.25, start=0.1, end=0.001), TOTAL)
    # torch's scheduler is asked once after the last step too, so it is made for one step more
    theirs = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, LR, total_steps=TOTAL + 1, pct_start=0.25, div_factor=10, final_div_factor=100, cycle_momentum=False
        )
    )
    assert rates(OneCycle(warmup=0.25, start=0.1, end=0.001), TOTAL + 1)[:TOTAL] == pytest.approx(theirs, rel=1e-12)
    assert ours[0] == pytest.approx(LR * 0.1)
    assert ours[-1] == pytest.approx(LR * 0.001)
    assert max(ours) == pytest.approx(LR, rel=1e-3)


def test_cosine_is_torchs() -> None:
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, TOTAL, eta_min=LR * 0.05))
    assert rates(Cosine(end=0.05), TOTAL) == pytest.approx(theirs, rel=1e-10)


def test_step_is_torchs() -> None:
    theirs = torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [69, 103], gamma=0.2))
    assert rates(Step(milestones=(0.5, 0.75), gamma=0.2), TOTAL) == pytest.approx(theirs, rel=1e-12)


def test_constant() -> None:
    assert rates(Constant(), 3) == [LR] * 3


@pytest.mark.parametrize("name", list(schedules))
@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_short_runs_have_finite_rates(name: str, total: int) -> None:
    assert all(0 <= rate <= LR * (1 + 1e-12) for rate in rates(schedules[name](), total))


def test_falling_milestones_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.milestones=\[0\.75, 0\.5\]: must rise"):
        Step(milestones=(0.75, 0.5))
