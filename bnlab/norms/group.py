"""Group normalization: each sample by groups of neighbouring channels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.errors import IncompatibleError
from bnlab.norms.derivatives import through_formula, transformed
from bnlab.norms.formula import (
    batch_axes,
    is_channels_last,
    kernel_input,
    moments,
    normalize,
    per_channel,
    widened,
)
from bnlab.norms.rms import factor_and_slope
from bnlab.norms.strategy import Facts, NormLayer, Strategy, strategies
from bnlab.schema import param


@strategies.register("group")
@dataclass(frozen=True, kw_only=True)
class Group(Strategy):
    """Normalize each sample over groups of neighbouring channels; training and evaluation are the same.

    y = gamma * (x - E[x]) / sqrt(Var[x] + eps) + beta, Var biased, over axes C/groups, H, W per sample and group,
    gamma and beta one pair a channel. groups=1 is `layer` over the sample, groups=C is `instance` (and beta for
    `(N, C)`). The channels must be a multiple of `groups`.

    It does not cancel a bias in front of it, which differs from channel to channel within a group (with groups=C it
    would).

    Wu and He, "Group Normalization", 2018. Defaults: groups 8 (the paper has 32, of wider layers), eps 1e-5, affine.
    """

    groups: int = param(8, "groups of channels, must divide the channels of every layer", low=1)

    facts = Facts(cancels_shift=True, cancels_scale=True)

    def layer(self, channels: int) -> NormLayer:
        return GroupLayer(channels, self, self.groups)


class GroupLayer(NormLayer):
    """The kernel by memory layout, the fastest that keeps its precision; the output keeps the input's layout.

    Contiguous: torch's group norm of the (N, C, H*W) view, 0.35 of the time of batch norm. channels_last: `GroupNorm`,
    1.55 of batch norm; torch's group norm loses a large offset there on CPU (it forms E[x^2] - E[x]^2), and a copy to
    contiguous and back takes twice as long. `(N, C)`: layer norm of the (N, groups, C/groups) view, half of the time of
    group norm for 256 x 1024, the same for 64 x 256.
    Errors: IncompatibleError where `groups` does not divide `channels`.
    """

    def __init__(self, channels: int, strategy: Strategy, groups: int) -> None:
        if channels % groups:
            fitting = ", ".join(str(g) for g in range(1, channels + 1) if channels % g == 0)
            raise IncompatibleError(
                f"norm.groups={groups}: must divide the channels of every layer, and one here has {channels}\n"
                f"{channels} channels can have norm.groups={fitting}\n"
                "or change the width of the model to a multiple of norm.groups"
            )
        super().__init__(channels, strategy)
        self.groups = groups

    def normalized(self, x: Tensor) -> Tensor:
        if self.eps_outside or is_channels_last(x):
            norm = group_formula if transformed() else GroupNorm.apply
            y: Tensor = norm(x, self.gamma, self.beta, self.groups, self.eps, self.eps_outside)
            return y
        if x.dim() == 2:
            return self._of_rows(x)
        flat = kernel_input(x, self.gamma).flatten(2)  # three dimensions have one layout only
        return torch.group_norm(flat, self.groups, self.gamma, self.beta, self.eps).view(x.shape).to(x.dtype)

    def _of_rows(self, x: Tensor) -> Tensor:
        parts = widened(x).unflatten(1, (self.groups, -1))
        y = F.layer_norm(parts, parts.shape[2:], eps=self.eps).flatten(1)
        if (gamma := self.gamma) is not None and (beta := self.beta) is not None:
            y = torch.addcmul(beta, y, gamma)
        return y.to(x.dtype)


def group_formula(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, eps_outside: bool
) -> Tensor:
    """Return what `GroupNorm` does."""
    parts = widened(x).unflatten(1, (groups, -1))
    y = normalize(parts, *moments(parts, range(2, parts.dim())), None, None, eps, eps_outside).flatten(1, 2)
    if weight is not None and bias is not None:
        y = torch.addcmul(per_channel(bias, x), y, per_channel(weight, x))
    return y.to(x.dtype)


class GroupNorm(torch.autograd.Function):
    """Group normalization from sums over the pixels of each channel, which are fast in channels_last.

    With r = 1/sqrt(var + eps), a group of n values and an incoming gradient g: dbeta = sum g,
    dgamma = sum g * (x - mean) * r, dx = r * (gamma * g - sum(gamma * g) / n) - (x - mean) * slope * sum(gamma * g *
    (x - mean)), both sums over the group; slope as in `RootMeanSquare`.
    x is kept beside x - mean for second derivatives alone.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, eps_outside: bool
    ) -> Tensor:
        wide = widened(x)
        count = x[0].numel() // groups
        centred = wide - group_sums(pixel_sums(wide), groups) / count
        root = (group_sums(pixel_sums(centred.square()), groups) / count).sqrt_()
        r, slope = factor_and_slope(root, count, eps, eps_outside)
        ctx.save_for_backward(x, weight, bias, centred, r, slope)
        ctx.groups, ctx.count, ctx.eps, ctx.eps_outside = groups, count, eps, eps_outside
        if weight is None or bias is None:
            return (centred * r).to(x.dtype)
        return torch.addcmul(per_channel(bias, x), centred, r * per_channel(weight, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, centred, r, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = partial(group_formula, groups=ctx.groups, eps=ctx.eps, eps_outside=ctx.eps_outside)
            return *through_formula(formula, grad, x, weight, bias), None, None, None
        grad = widened(grad)
        sums, products = pixel_sums(grad), pixel_sums(grad * centred)
        gamma = 1.0 if weight is None else per_channel(weight, grad)
        shift = group_sums(sums * gamma, ctx.groups) * r / -ctx.count
        dx = torch.addcmul(shift, grad, r * gamma)
        dx.addcmul_(centred, group_sums(products * gamma, ctx.groups) * slope, value=-1)
        dgamma = (products * r).sum(batch_axes(grad)) if ctx.needs_input_grad[1] else None
        dbeta = sums.sum(batch_axes(grad)) if ctx.needs_input_grad[2] else None
        return dx.to(x.dtype), dgamma, dbeta, None, None, None


def pixel_sums(x: Tensor) -> Tensor:
    """Return the sums over H, W, which stay as ones."""
    return x.sum((2, 3), keepdim=True) if x.dim() == 4 else x


def group_sums(values: Tensor, groups: int) -> Tensor:
    """Return, at each channel of (N, C) or (N, C, 1, 1), the sum over the channels of its group."""
    parts = values.reshape(values.shape[0], groups, -1)
    return parts.sum(2, keepdim=True).expand_as(parts).reshape(values.shape)
