"""Fused kernels for statistics that are known before the output: what renorm and streaming are made of.

Torch's batch norm takes the statistics of its input and applies them in one call. A strategy that first does something
with them needs the two halves apart: `batch_statistics`, and `ShareNorm` with the gradient through them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.norms.derivatives import through_formula
from bnlab.norms.formula import batch_axes, moments, normalize, per_channel
from bnlab.norms.strategy import NormLayer


def eager_forward(layer: NormLayer, x: Tensor) -> Tensor:
    """Be the forward pass of a layer that torch.compile has to leave as it is.

    In the backward pass it would compute again what follows from the running statistics, from buffers that have moved
    since (torch 2.15: wrong r and d of renorm), and it cannot trace a backward pass that moves buffers itself (online).
    """
    if not torch.compiler.is_compiling():  # `disable` imports the compiler, which takes seconds
        return NormLayer.forward(layer, x)
    y: Tensor = torch.compiler.disable(NormLayer.forward)(layer, x)
    return y


def batch_statistics(x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel over the batch, (C,) each in the dtype of `like`; no gradient.

    It is the first half of torch's batch norm (on 1 CPU core 0.3 of the time of `torch.var_mean` in contiguous
    (N, C, H, W), 0.07 in channels_last), which takes the dtype of its result from running buffers; these here are
    thrown away. Not for torch.compile, which is not told that the half writes to those buffers.
    """
    unused = like.new_zeros(2, x.shape[1]).unbind()
    statistics: tuple[Tensor, Tensor] = torch.ops.aten.batch_norm_update_stats(x.detach(), *unused, 0.0)
    return statistics


def share_formula(
    mean: Tensor, var: Tensor, eps: float, share: float | Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Return what `ShareNorm` does, `mean` and `var` of the mixture being what they become where `x` moves.

    With s = E[x'] - E[x] for a moved x': mean' = mean + m s and, as mean_0 is no longer known,
    var' = var + m (Var[x'] - Var[x]) + m s ((1 - m) s + 2 (E[x] - mean)).
    """
    batch_mean, batch_var = moments(x, batch_axes(x))
    shift = batch_mean - batch_mean.detach()
    mean, var = per_channel(mean, x), per_channel(var, x)
    moved_var = var + share * (batch_var - batch_var.detach())
    moved_var = moved_var + share * shift * ((1 - share) * shift + 2 * (batch_mean.detach() - mean))
    return normalize(x, mean + share * shift, moved_var, weight, bias, eps, False)


class ShareNorm(torch.autograd.Function):
    """Normalize by a mean and a variance in which the batch has a share, with the gradient through that share.

    y = gamma * xhat + beta, xhat = (x - mean) * r, r = 1/sqrt(var + eps), and over the n values of a channel
    d mean / d x_i = share / n, d var / d x_i = 2 * share / n * (x_i - mean). That holds for the batch's own statistics
    (share 1) and for their mixture with older ones, mean = (1 - m) mean_0 + m E[x],
    var = (1 - m) var_0 + m Var[x] + m (1 - m) (E[x] - mean_0)^2 (share m). With an incoming gradient g:
    dgamma = sum g * xhat, dbeta = sum g, dx = gamma * r * (g - share / n * (dbeta + xhat * dgamma)), which is
    (1 - share) * gamma * r * g plus `share` of the gradient of batch norm.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        share: float | Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, var, weight, bias)
        ctx.eps, ctx.share = eps, share
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = partial(share_formula, mean, var, ctx.eps, ctx.share)
            dx, dgamma, dbeta = through_formula(formula, grad, x, weight, bias)
            return dx, None, None, dgamma, dbeta, None, None
        gamma = torch.ones_like(mean) if weight is None else weight
        r = torch.rsqrt(var + ctx.eps)
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            grad, x, gamma, None, None, mean, r, True, ctx.eps, [True, True, True]
        )
        if isinstance(ctx.share, Tensor) or ctx.share < 1:
            outside = per_channel(((1 - ctx.share) * gamma * r).to(grad.dtype), x)
            dx = dx.mul_(ctx.share).addcmul_(grad, outside)
        has_bias = ctx.needs_input_grad[4]
        return dx, None, None, None if weight is None else dgamma, dbeta if has_bias else None, None, None
