"""Normalization layers alone: forward and backward of one layer on one activation, by shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bnlab.bench.arms import BenchSection, left_out, prepared
from bnlab.bench.engine import Contest, Stepper
from bnlab.bench.stepper import where
from bnlab.bench.traffic import traffic_of
from bnlab.errors import IncompatibleError
from bnlab.norms.strategy import Strategy
from bnlab.timing import phase_clock

SHAPES = ((64, 32, 28, 28), (128, 64, 16, 16), (256, 128, 8, 8), (64, 256))


def uncompared(section: BenchSection) -> Iterator[str]:
    """Yield a line where `none` was named beside others, and where only one is left."""
    labels = [arm.label for arm in section.arms if arm.config.norm.name != "none"]
    if labels and len(labels) < len(section.arms):
        yield "norm=none is left out: it has no layer"
    if len(labels) == 1:
        only = f"norm={labels[0]} alone has nothing to be compared with but its second copy"
        yield f"{only}; name others, such as norm=batch,layer"


def layer_contest(section: BenchSection, shape: Sequence[int]) -> Contest | None:
    """Return the contest of the strategies of `section` on one shape; `none`, which has no layer, is left out.

    The baseline is `batch`, or the first strategy where it is not among them. None where no strategy takes the shape.
    Errors: IncompatibleError without any but `none`.
    """
    trainer = section.arms[0].config.trainer
    device = prepared(trainer)
    norms = {arm.label: arm.config.norm for arm in section.arms if arm.config.norm.name != "none"}
    if not norms:
        raise IncompatibleError("norm=none: has no layer to measure\nname others, such as norm=batch,layer")
    fitting, missing = [], []
    for label, norm in norms.items():
        try:
            _check(norm, shape)
            fitting.append(label)
        except IncompatibleError as error:
            missing.append(left_out(label, error))
    if not fitting:
        return None
    has_space = len(shape) == 4
    layout = "channels_last" if trainer.channels_last and has_space else "contiguous"
    steppers = {
        label: partial(_stepper, norms[label], shape, device, layout == "channels_last")
        for label in sorted(fitting, key=lambda label: norms[label].name != "batch")
    }
    setting = (where(device), layout)
    title = f"a layer on {' x '.join(map(str, shape))}"
    return Contest(title, setting, shape[0], device, steppers, tuple(missing))


def _check(norm: Strategy, shape: Sequence[int]) -> None:
    """Refuse a strategy that is undefined on an activation of this shape. Errors: IncompatibleError."""
    if norm.facts.needs_space and len(shape) != 4:
        raise IncompatibleError(f"norm={norm.name}: is over the pixels of an image, and there are none")
    norm.check_batch(shape[0])
    norm.layer(shape[1])


def _stepper(norm: Strategy, shape: Sequence[int], device: torch.device, channels_last: bool) -> Stepper:
    draw = torch.Generator().manual_seed(0)
    layout: dict[str, Any] = {"memory_format": torch.channels_last} if channels_last else {}

    def random() -> Tensor:
        return torch.randn(*shape, generator=draw).to(device).contiguous(**layout)

    layer, x, gradient = norm.layer(shape[1]).to(device).train(), random().requires_grad_(), random()
    clock = phase_clock(device)

    def step() -> tuple[float, float, float, float]:
        clock.mark()
        y = layer(x)
        clock.mark()
        y.backward(gradient)
        clock.mark()
        forward, backward = clock.flush()
        for tensor in (x, *layer.parameters()):
            tensor.grad = None
        return forward + backward, forward, backward, 0.0

    return Stepper(step, lambda: traffic_of(step), sum(p.numel() for p in layer.parameters()), x.nbytes)
