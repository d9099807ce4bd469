"""What torch.func and second derivatives ask of layers whose first derivative is that of a fused kernel.

A kernel's backward pass saves intermediate values, which are cut off from the input: differentiated again it would be
silently wrong. So there each autograd function here is left for the formula it computes, in plain operations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed() -> bool:
    """Tell whether torch.func (vmap, grad, jvp) or forward mode is at work: then the formula serves, not the kernel."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def through_formula(formula: Callable[..., Tensor], grad: Tensor, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of `formula` at `inputs` for the gradient `grad` of its output, differentiable themselves.

    For the backward pass of an autograd function in which gradients are enabled (`create_graph=True`).
    """
    views = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]  # one may be made of another
    wanted = [view for view in views if view is not None and view.requires_grad]
    gradients = iter(torch.autograd.grad(formula(*views), wanted, grad, create_graph=True, allow_unused=True))
    return tuple(next(gradients) if view is not None and view.requires_grad else None for view in views)


def refuse_transforms(norm: str, why: str) -> None:
    """Refuse to train under torch.func. Errors: RuntimeError."""
    if transformed():
        raise RuntimeError(
            f"norm={norm} does not train under torch.func (vmap, grad, jvp): {why}\n"
            "evaluate with it there (model.eval()), or take another strategy"
        )


def refuse_second_derivative(norm: str, why: str) -> None:
    """Refuse, in a backward pass, that it is differentiated (`create_graph=True`). Errors: RuntimeError."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"norm={norm} has no second derivative: {why}\n"
            "take its gradient without create_graph, or take another strategy"
        )
