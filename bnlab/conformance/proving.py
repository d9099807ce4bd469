"""What a property of the conformance card is made of: how it is entered, and how deviations are measured.

A property is a function of the bench under `@proves`: it returns the largest deviation it measured, its docstring's
first line explains it, and `expects` says from the declared facts what must come out. Deviations are the largest
absolute difference over the root mean square of the output, in float64 where nothing else is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnlab.conformance.findings import Property
from bnlab.conformance.subject import Bench
from bnlab.norms.strategy import Facts

ROUNDING = 1e-9  # what float64 may lose; the smallest deviations that mean something are a thousand times larger


@dataclass(frozen=True)
class Measured:
    """The deviation that was found, the largest one with which the property holds, and a remark."""

    error: float | None
    limit: float = ROUNDING
    note: str = ""
    flaw: str = ""  # why it does not hold, whatever the deviation

    @property
    def holds(self) -> bool:
        return not self.flaw and (self.error is None or self.error <= self.limit)


class Undefined(Exception):
    """A property cannot be written down for this subject; the message says why."""


Expectation = Callable[[Facts, Bench], bool | None]


@dataclass(frozen=True)
class Check:
    """A property, what it must be, and how it is measured; None: it is undefined here."""

    about: Property
    expects: Expectation
    measure: Callable[[Bench], Measured | None]


CHECKS: dict[str, Check] = {}


def always(facts: Facts, bench: Bench) -> bool | None:
    """Expect of every strategy that the property holds."""
    return True


def proves(
    key: str, group: str, short: str, expects: Expectation = always
) -> Callable[[Callable[[Bench], Measured | None]], Callable[[Bench], Measured | None]]:
    """Enter the decorated function as a property; cards show them in the order of the source."""

    def enter(measure: Callable[[Bench], Measured | None]) -> Callable[[Bench], Measured | None]:
        line = (measure.__doc__ or "").partition("\n")[0]
        CHECKS[key] = Check(Property(key, group, short, line), expects, measure)
        return measure

    return enter


def apart(reference: Tensor, other: Tensor) -> float:
    """Return the largest difference over the RMS of the reference; infinity where a number is not finite."""
    if reference.shape != other.shape:
        raise ValueError(f"shape {tuple(other.shape)} instead of {tuple(reference.shape)}")
    reference, other = reference.detach().double(), other.detach().double()
    if not (reference.isfinite().all() and other.isfinite().all()):
        return math.inf
    difference = (reference - other).abs().max().item()
    size = reference.square().mean().sqrt().item()
    return difference / size if size > 0 else difference


def worst(errors: Iterable[float]) -> float:
    """Return the largest error; a number that is none counts as infinite."""
    return max((math.inf if math.isnan(error) else error for error in errors), default=0.0)


def gradients(output: Tensor, inputs: list[Tensor], weights: Tensor, *, again: bool = False) -> list[Tensor]:
    """Return the gradients of the weighted sum of the outputs; zeros where it does not depend on an input.

    With `again` they can be differentiated themselves.
    """
    grads = torch.autograd.grad((output * weights).sum(), inputs, create_graph=again, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


def flaw_of(module: nn.Module, x: Tensor) -> str:
    """Train on `x` and return what came out as not finite: the output, a gradient or a statistic; or nothing."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
    y = module(x)
    parts = {"output": [y], "gradient": gradients(y, inputs, torch.cos(torch.arange(y.numel())).view(y.shape).to(y))}
    parts["statistics"] = [b for b in module.buffers() if b.is_floating_point()]
    for name, tensors in parts.items():
        if not all(tensor.isfinite().all() for tensor in tensors):
            return f"{name} not finite"
    return ""
