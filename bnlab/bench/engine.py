"""The paired comparison: contenders do one step each in turn until every ratio to the baseline is well known.

They are made anew for each block of rounds; `bench.pairing` says why.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from bnlab.bench.pairing import LOOKS, Blocks, Figures
from bnlab.bench.traffic import Traffic
from bnlab.errors import IncompatibleError
from bnlab.interval import Interval
from bnlab.schema import param
from bnlab.timing import Stopwatch, copy_bandwidth

CONTROL = "second copy"
FIGURES = ("step_ms", "forward_ms", "backward_ms", "optimizer_ms", "host_ms")  # of one step, in this order
LAUNCH_BOUND = 0.8  # of the step that the host takes to issue it
FEWEST_BLOCKS = 3  # from fewer nothing is decided


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How a bench takes steps, and when it stops."""

    seconds: float = param(120.0, "budget of the whole bench", above=0.0)
    precision: float = param(0.02, "half-width of each ratio's 95% interval to stop at, over the ratio", above=0.0)
    rounds: int = param(20, "rounds of a block, after which all arms are made anew", low=2)
    mode: Literal["steps", "inference", "profile", "workers"] = param(
        "steps", "what is timed: training steps, evaluation, the operations of a step, or workers of which one is late"
    )
    graph: bool = param(False, "on CUDA, replay each arm's step from a graph, without launching its kernels one by one")


@dataclass(frozen=True)
class Stepper:
    """Something that goes one step at a time."""

    step: Callable[[], Figures]  # those of FIGURES that there are, NaN for one that is not known
    traffic: Callable[[], Traffic]  # of one step, which it takes
    num_parameters: int
    widest: int  # bytes of the widest normalized activation


@dataclass(frozen=True)
class Contest:
    """Contenders that differ in one thing; the first is the baseline."""

    title: str  # what tells it from other contests of the bench; empty where there is one only
    setting: tuple[str, ...]  # what the contenders share, for a heading
    batch_size: int
    device: torch.device
    make: Mapping[str, Callable[[], Stepper]]  # may raise IncompatibleError: then it is left out
    left_out: tuple[str, ...] = ()  # a sentence for each that does not fit
    graph: bool = False  # steps are replayed from a CUDA graph
    steps_per_epoch: Mapping[str, int] = field(default_factory=dict)  # by contender; none of a layer


@dataclass(frozen=True)
class ArmTime:
    """One contender's step: medians over rounds, and its ratio to the baseline's; None: not known."""

    label: str
    step_ms: float
    p10_ms: float
    p90_ms: float
    forward_ms: float | None
    backward_ms: float | None
    optimizer_ms: float | None
    host_ms: float | None  # that the host took to issue the step to the device
    ratio: Interval
    floor: float  # the ratio that its additional traffic alone would give, at the measured bandwidth
    images_per_second: float
    traffic: Traffic
    num_parameters: int
    block_ms: tuple[float, ...]  # median step of each block
    steps_per_epoch: int | None

    @property
    def epoch_ms(self) -> float | None:
        """The steps of an epoch; None of what has no epochs."""
        return None if self.steps_per_epoch is None else self.step_ms * self.steps_per_epoch

    @property
    def launch_bound(self) -> bool | None:
        """Whether the device waits for the host; None where the host does the work."""
        return None if self.host_ms is None else launch_bound(self.host_ms, self.step_ms)


def launch_bound(host_ms: float, step_ms: float) -> bool:
    """Return whether the device waits for the host, which needs `host_ms` to issue a step of `step_ms`.

    A step begins on a device without work. Where kernels outlast their launches, the host is through early and the rest
    of the step is work that was queued; where the device waits for each launch, both end together. From LAUNCH_BOUND
    on at most a fifth of the step was queued. A step in which the host waits for the device looks the same.
    """
    return host_ms >= LAUNCH_BOUND * step_ms


@dataclass(frozen=True)
class ContestTime:
    """What a contest came to; the control is a second copy of the baseline, the noise floor of the ratios."""

    title: str
    setting: tuple[str, ...]
    arms: tuple[ArmTime, ...]
    control: Interval
    blocks: int  # each with the contenders made anew
    rounds: int
    stopped_by: Literal["precision", "budget"]
    seconds: float
    bandwidth: float  # bytes a second, read and written, of a copy as large as the widest normalized activation
    device: torch.device
    threads: int
    left_out: tuple[str, ...] = ()
    graph: bool = False
    rounds_of_block: int = 0
    by_round: Mapping[str, Sequence[float]] = field(default_factory=dict)  # ms of a step, the control's too


def measure(
    contest: Contest, limits: BenchConfig, seconds: float, watch: Callable[[Blocks[str], float], None]
) -> ContestTime:
    """Take steps in turn until every ratio is within `limits.precision`, or `seconds` are over.

    There are FEWEST_BLOCKS at least. `watch` is told of every round, with the seconds left.
    Errors: IncompatibleError where no contender is left.
    """
    gc.collect()  # the models of the contest before
    clock = Stopwatch(contest.device)
    clock.start()
    steppers, left_out = _made(contest)
    reference = next(iter(steppers))
    traffic = {label: _traffic(stepper) for label, stepper in steppers.items()}
    parameters = {label: stepper.num_parameters for label, stepper in steppers.items()}
    bandwidth = copy_bandwidth(max(stepper.widest for stepper in steppers.values()), contest.device)
    stopped_by: Literal["precision", "budget"] = "budget"
    turns, draw = Blocks(reference), random.Random(0)
    while True:
        for _ in turns.block({label: stepper.step for label, stepper in steppers.items()}, limits.rounds):
            watch(turns, seconds - clock.seconds)
        if turns.count in LOOKS and _known(turns, limits.precision):
            stopped_by = "precision"
        if turns.count >= FEWEST_BLOCKS and (stopped_by == "precision" or clock.seconds >= seconds):
            break
        labels = list(steppers)
        steppers.clear()  # before the next are made
        steppers = {label: _maker(contest, label, reference)() for label in draw.sample(labels, len(labels))}
    clock.stop()
    base = turns.medians(reference)[0]

    def arm(label: str) -> ArmTime:
        known = {key: value for key, value in zip(FIGURES, turns.medians(label), strict=False) if not math.isnan(value)}
        cuts = statistics.quantiles([figures[0] for figures in turns.figures[label]], n=10, method="inclusive")
        more_ms = (traffic[label].moved - traffic[reference].moved) / bandwidth * 1e3
        return ArmTime(
            label=label,
            step_ms=known["step_ms"],
            p10_ms=cuts[0],
            p90_ms=cuts[-1],
            forward_ms=known.get("forward_ms"),
            backward_ms=known.get("backward_ms"),
            optimizer_ms=known.get("optimizer_ms"),
            host_ms=known.get("host_ms"),
            ratio=turns.ratio(label),
            floor=(base + more_ms) / base,
            images_per_second=contest.batch_size / known["step_ms"] * 1e3,
            traffic=traffic[label],
            num_parameters=parameters[label],
            block_ms=tuple(turns.first_by_block[label]),
            steps_per_epoch=contest.steps_per_epoch.get(label),
        )

    return ContestTime(
        contest.title,
        contest.setting,
        tuple(arm(label) for label in parameters if label != CONTROL),
        turns.ratio(CONTROL),
        turns.count,
        turns.rounds,
        stopped_by,
        clock.seconds,
        bandwidth,
        contest.device,
        torch.get_num_threads(),
        left_out,
        contest.graph,
        limits.rounds,
        {label: [figures[0] for figures in rounds] for label, rounds in turns.figures.items()},
    )


def _made(contest: Contest) -> tuple[dict[str, Stepper], tuple[str, ...]]:
    """Make every contender and the control; return them with a sentence for each that is left out."""
    steppers: dict[str, Stepper] = {}
    left_out = list(contest.left_out)
    for label, make in contest.make.items():
        try:
            steppers[label] = make()
        except IncompatibleError as error:
            left_out.append(f"left out: {label}: {error}")
    if not steppers:
        raise IncompatibleError("nothing to measure\n" + "\n".join(left_out[:2]))
    steppers[CONTROL] = _maker(contest, CONTROL, next(iter(steppers)))()
    return steppers, tuple(left_out)


def _maker(contest: Contest, label: str, reference: str) -> Callable[[], Stepper]:
    """Return what makes a contender; the control is made and treated as the others are."""
    return contest.make[reference if label == CONTROL else label]


def _traffic(stepper: Stepper) -> Traffic:
    """Count in the second step: the first one makes what the optimizer keeps."""
    stepper.step()
    return stepper.traffic()


def _known(turns: Blocks[str], precision: float) -> bool:
    return all(turns.ratio(name).relative_half <= precision for name in turns.by_block if name != turns.reference)


def figures(times: ContestTime, arm: ArmTime) -> dict[str, Any]:
    """Return a contender's figures as plain values."""
    return {
        "contest": times.title,
        "arm": arm.label,
        "step_ms": arm.step_ms,
        "p10_ms": arm.p10_ms,
        "p90_ms": arm.p90_ms,
        "forward_ms": arm.forward_ms,
        "backward_ms": arm.backward_ms,
        "optimizer_ms": arm.optimizer_ms,
        "host_ms": arm.host_ms,
        "launch_bound": arm.launch_bound,
        "baseline": times.arms[0].label,
        "ratio": arm.ratio.value,
        "ratio_low": arm.ratio.low,
        "ratio_high": arm.ratio.high,
        "floor": arm.floor,
        "epoch_ms": arm.epoch_ms,
        "images_per_second": arm.images_per_second,
        "peak_bytes": arm.traffic.peak,
        "moved_bytes": arm.traffic.moved,
        "num_parameters": arm.num_parameters,
        "bandwidth": times.bandwidth,
        "control": times.control.value,
        "control_low": times.control.low,
        "control_high": times.control.high,
        "blocks": times.blocks,
        "rounds": times.rounds,
        "seconds": times.seconds,
        "stopped_by": times.stopped_by,
        "device": str(times.device),
        "threads": times.threads,
        "graph": times.graph,
    }


def observations(times: ContestTime) -> Iterator[tuple[str, str, int, float]]:
    """Yield (contest, contender, block, ms of the step) of every round that counts, the second copy's too."""
    for label, rounds in times.by_round.items():
        for number, ms in enumerate(rounds):
            yield times.title, label, number // times.rounds_of_block, ms


def by_block(arm: ArmTime) -> dict[str, list[float]]:
    """Return a contender's figures of each block, of which intervals over blocks are made."""
    columns = {
        "step_ms": list(arm.block_ms),
        "images_per_second": [arm.images_per_second * arm.step_ms / ms for ms in arm.block_ms],
    }
    if arm.steps_per_epoch is not None:
        columns["epoch_ms"] = [ms * arm.steps_per_epoch for ms in arm.block_ms]
    return columns
