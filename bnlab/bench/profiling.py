"""Where the time of a training step goes: the operations of torch's profiler, by what they are part of.

Ranges are laid around the forward pass of each module, around the optimizer's step and around refreshes of statistics.
An operation belongs to the innermost range that it is in. One of the backward pass belongs to that of the forward
operation whose gradient it takes: the last one that began with its sequence number, as an operation without a gradient
carries the number of the next that has one.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bnlab.bench.arms import BenchSection, loaded_data, prepared
from bnlab.bench.pairing import RESAMPLES
from bnlab.bench.stepper import Trainee, setting_of, trainee, where
from bnlab.interval import Interval
from bnlab.models.model import ACTIVATIONS, Conv, Linear
from bnlab.norms.strategy import NormLayer, NormModule
from bnlab.training.loop import train_step

STEPS = 20
WARMUP = 3  # steps that are profiled and not counted
GROUPS = ("norm forward", "norm backward", "conv and linear", "activation", "optimizer", "other")
RANGE, STEP = "bnlab: ", "bnlab step"
CPU = DeviceType.CPU
BACKWARD = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class ArmProfile:
    """Of one arm the milliseconds in the operations of a step, and the share of each group in them, step by step."""

    label: str
    ms: float
    shares: dict[str, Interval]
    by_step: dict[str, list[float]]  # by the names of their metrics
    num_parameters: int

    @property
    def figures(self) -> dict[str, float | None]:
        """Its figures as plain values, by the names of their metrics."""
        both = self.shares["norm forward"].value + self.shares["norm backward"].value
        plain: dict[str, float | None] = {"operations_ms": self.ms, "norm_share": both}
        for group, share in self.shares.items():
            name = named(group)
            plain |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
        return plain


@dataclass(frozen=True)
class SectionProfile:
    """A section of arms under the profiler."""

    title: str
    setting: tuple[str, ...]
    arms: tuple[ArmProfile, ...]
    device: torch.device
    threads: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All figures as plain values, a row an arm."""
        return [{"contest": self.title, "arm": arm.label, **arm.figures} for arm in self.arms]


def named(group: str) -> str:
    """Return the name of the metric that a group's share is."""
    return f"{group.replace(' ', '_')}_share"


def profiled(section: BenchSection) -> SectionProfile:
    """Take steps of each arm under the profiler. Errors: as of reading the data and finding the device."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it logs its start and its search for devices on stderr
    config = section.arms[0].config
    device = prepared(config.trainer)
    bundle, training_set, batches = loaded_data(config, section.images, device)
    arms = []
    for arm in section.arms:
        one, stream = trainee(arm.config, bundle, training_set, device), itertools.cycle(batches)
        _lay_ranges(one)
        with _profiler(device) as watched:
            for number in range(WARMUP + STEPS):
                images, labels = next(stream)
                with record_function(STEP):
                    train_step(
                        *(one.forward, one.optimizer, one.mean_loss, images, labels, number, one.refresh),
                        micro_batch=arm.config.micro_batch(workers=1),
                    )
        parameters = sum(p.numel() for p in one.model.parameters())
        arms.append(
            arm_of(arm.label, parameters, by_step(watched.events() or (), on_device=device.type == "cuda")[WARMUP:])
        )
    setting = setting_of(config, bundle.name, len(batches[0][1]), where(device))
    return SectionProfile(section.title, setting, tuple(arms), device, torch.get_num_threads())


def by_step(events: Sequence[FunctionEvent], *, on_device: bool) -> list[dict[str, float]]:
    """Return for each step the milliseconds in the operations of each group; on a device those of their kernels.

    Time between operations, in Python and in the profiler itself, is in none.
    """
    made = made_by(events)
    starts = sorted(event.time_range.start for event in events if event.name == STEP and event.device_type == CPU)
    steps = [dict.fromkeys(GROUPS, 0.0) for _ in starts]
    for event in events:
        number = bisect.bisect(starts, event.time_range.start) - 1
        if event.name.startswith((RANGE, STEP)) or event.device_type != CPU or number < 0:
            continue
        took = event.self_device_time_total if on_device else event.self_cpu_time_total
        steps[number][_group_of(event, made)] += took / 1e3
    return steps


def made_by(events: Sequence[FunctionEvent]) -> dict[int, FunctionEvent]:
    """Return by sequence number the operation of the forward pass whose gradient has that number."""
    ordered = sorted(events, key=lambda event: event.time_range.start)
    return {event.sequence_nr: event for event in ordered if event.sequence_nr >= 0 and _node_of(event) is None}


def _group_of(event: FunctionEvent, made: dict[int, FunctionEvent]) -> str:
    node = _node_of(event)
    if node is None:
        return _range_of(event)
    forward = made.get(node.sequence_nr)
    group = "other" if forward is None else _range_of(forward)
    return "norm backward" if group == "norm forward" else group


def _above(event: FunctionEvent | None) -> Iterator[FunctionEvent]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _node_of(event: FunctionEvent) -> FunctionEvent | None:
    """Return the node of the backward pass that an operation is part of."""
    return next((e for e in _above(event) if e.name.startswith(BACKWARD)), None)


def _range_of(event: FunctionEvent) -> str:
    return next((e.name.removeprefix(RANGE) for e in _above(event) if e.name.startswith(RANGE)), "other")


def arm_of(label: str, num_parameters: int, steps: Sequence[dict[str, float]]) -> ArmProfile:
    """Return what the milliseconds of each group in each step come to.

    A group's share is its median over the sum of all medians, so that shares add up to 1 and a step in which another
    program had the processor does not count; its interval is a percentile bootstrap over steps.
    """
    table = np.array([[step[group] for group in GROUPS] for step in steps])
    drawn = np.random.default_rng(0).integers(0, len(table), (RESAMPLES, len(table)))
    medians = np.median(table[drawn], axis=1)
    low, high = np.percentile(medians / medians.sum(1, keepdims=True), (2.5, 97.5), axis=0)
    center = np.median(table, axis=0)
    shares = [
        Interval(float(share), float(below), float(above), len(table), kind="median")
        for share, below, above in zip(center / center.sum(), low, high, strict=True)
    ]
    parts = (table / table.sum(1, keepdims=True)).T
    steps_of = {named(group): part.tolist() for group, part in zip(GROUPS, parts, strict=True)}
    steps_of["norm_share"] = (parts[0] + parts[1]).tolist()
    return ArmProfile(label, float(center.sum()), dict(zip(GROUPS, shares, strict=True)), steps_of, num_parameters)


def _profiler(device: torch.device) -> profile:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    return profile(activities=activities, acc_events=True)  # without it, torch 2.10 warns of cycles, and there is one


def _lay_ranges(one: Trainee) -> None:
    """Lay the ranges around what a trainee does, until it is thrown away."""
    for module in one.model.modules():
        if (group := _group(module)) is not None:
            module.forward = _ranged(module.forward, group)
        if isinstance(module, (Conv, Linear)) and module.weight_transform is not None:
            module.weight_transform = _ranged(module.weight_transform, "norm forward")
    one.optimizer.step = _ranged(one.optimizer.step, "optimizer")  # type: ignore[method-assign]
    if one.refresh is not None:
        one.refresh.before_step = _ranged(one.refresh.before_step, "norm forward")  # type: ignore[method-assign]
        one.refresh.after_backward = _ranged(one.refresh.after_backward, "norm backward")  # type: ignore[method-assign]


def _group(module: nn.Module) -> str | None:
    if isinstance(module, NormLayer):
        return "norm forward"
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return "conv and linear"
    return "activation" if isinstance(module, (NormModule, *ACTIVATIONS.values())) else None  # type: ignore[arg-type]


def _ranged(function: Callable[..., Any], group: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        with record_function(RANGE + group):
            return function(*arguments, **named)

    return call
