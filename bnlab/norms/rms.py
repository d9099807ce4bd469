"""Root mean square normalization: each sample, or each of its positions, by the size of its values alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.errors import IncompatibleError
from bnlab.norms.derivatives import through_formula, transformed
from bnlab.norms.formula import batch_axes, is_channels_last, normalize, per_channel, widened
from bnlab.norms.strategy import Facts, NormLayer, Strategy, strategies
from bnlab.schema import param


@strategies.register("rms")
@dataclass(frozen=True, kw_only=True)
class Rms(Strategy):
    """Divide each sample by its root mean square, without centring; training and evaluation are the same.

    y = gamma * x / sqrt(E[x^2] + eps), gamma one value a channel, no beta: `affine=true` and `gamma` learn gamma.
    `over=sample`: the mean is over axes C, H, W per sample; `over=channel`: over axis C per sample and position. For
    `(N, C)` both are the same. With `eps_outside` the divisor is sqrt(E[x^2]) + eps.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019. Defaults: over=sample, eps 1e-5, gamma on
    (torch.nn.RMSNorm takes the machine epsilon of the dtype, and over C, H, W it has C*H*W gains instead of C).
    """

    over: Literal["sample", "channel"] = param("sample", "mean square over C, H, W, or over C at each position")

    facts = Facts(cancels_scale=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.affine == "beta":
            raise IncompatibleError("norm.affine=beta: norm=rms has no beta\nset norm.affine=true or false")

    def layer(self, channels: int) -> NormLayer:
        return RmsLayer(channels, self)


class RmsLayer(NormLayer):
    """Autograd functions of few passes; it has no beta, so `bias` is None.

    Where the values of a mean lie side by side in rows of C (over=channel in channels_last, `(N, C)`):
    `RootMeanSquareOfRows`, 0.4 of the time of F.rms_norm, whose gradient is left to autograd (0.55 for 256 x 1024, as
    long for 64 x 256). Else `RootMeanSquare`: over the sample 0.35 of F.rms_norm, over the channel 0.65 of the formula.
    """

    def __init__(self, channels: int, strategy: Rms) -> None:
        super().__init__(channels, strategy)
        self.bias = None
        self.over = strategy.over

    def normalized(self, x: Tensor) -> Tensor:
        if not self.eps_outside and x.dim() == 2:
            return self._of_rows(x)
        if not self.eps_outside and self.over == "channel" and is_channels_last(x):
            return self._of_rows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        dims = (1,) if self.over == "channel" else tuple(range(1, x.dim()))
        return over_root_mean_square(x, self.gamma, None, dims, self.eps, self.eps_outside)

    def _of_rows(self, rows: Tensor) -> Tensor:
        norm = rows_formula if transformed() else RootMeanSquareOfRows.apply
        y: Tensor = norm(widened(rows).contiguous(), self.gamma, self.eps)
        return y.to(rows.dtype)


def rows_formula(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Return gamma * x / sqrt(E[x^2] + eps) over the last axis."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class RootMeanSquareOfRows(torch.autograd.Function):
    """y = gamma * x * r with r = 1 / sqrt(E[x^2] + eps) over the last axis, and its gradient.

    Layer norm's backward kernel, told that the mean was 0, gives the gradient but for the mean of gamma * g over the
    row, times r, which it takes off: that is added again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        root = root_mean_square(x, (x.dim() - 1,))
        r = root.square_().add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        ctx.eps = eps
        y = x * r
        return y if weight is None else y.mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *through_formula(partial(rows_formula, eps=ctx.eps), grad, x, weight), None
        length = x.shape[-1]
        grad = grad.contiguous()
        mask = [True, weight is not None, False]
        dx, dgamma, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, (length,), torch.zeros_like(r), r, weight, None, mask
        )
        rows = grad.view(-1, length)
        sums = rows.sum(1) if weight is None else torch.mv(rows, weight)
        return dx.add_(sums.view(r.shape).mul_(r), alpha=1 / length), dgamma, None


def over_root_mean_square(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: Sequence[int], eps: float, eps_outside: bool
) -> Tensor:
    """Return gamma * x / sqrt(E[x^2] + eps) + beta, the mean over `dims`."""
    norm = formula_of_root_mean_square if transformed() else RootMeanSquare.apply
    y: Tensor = norm(x, weight, bias, dims, eps, eps_outside)
    return y


def formula_of_root_mean_square(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: Sequence[int], eps: float, eps_outside: bool
) -> Tensor:
    """Return what `RootMeanSquare` does."""
    wide = widened(x)
    mean_square = wide.square().mean(tuple(dims), keepdim=True)
    return normalize(wide, wide.new_zeros(()), mean_square, weight, bias, eps, eps_outside).to(x.dtype)


class RootMeanSquare(torch.autograd.Function):
    """y = gamma * x * r + beta with r = 1 / sqrt(E[x^2] + eps) over `dims`, and its gradient.

    With g the incoming gradient and n values in E[x^2]: dbeta = sum g, dgamma = sum g * x * r,
    dx = gamma * r * g - x * slope * sum(gamma * g * x), slope = -2/n dr/dE[x^2] = r^3 / n; with eps outside it is
    r^2 / (n * sqrt(E[x^2])).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        dims: Sequence[int],
        eps: float,
        eps_outside: bool,
    ) -> Tensor:
        wide = widened(x)
        r, slope = factor_and_slope(root_mean_square(wide, dims), math.prod(x.shape[d] for d in dims), eps, eps_outside)
        ctx.save_for_backward(x, weight, bias, r, slope)
        ctx.dims, ctx.eps, ctx.eps_outside = dims, eps, eps_outside
        if bias is None:
            return scaled(wide, r, weight).to(x.dtype)
        beta = per_channel(bias, x)
        if weight is not None and is_channels_last(x):
            return torch.addcmul(beta, wide, r * per_channel(weight, x)).to(x.dtype)
        return scaled(wide, r, weight).add_(beta).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, r, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = partial(formula_of_root_mean_square, dims=ctx.dims, eps=ctx.eps, eps_outside=ctx.eps_outside)
            return *through_formula(formula, grad, x, weight, bias), None, None, None
        wide, grad = widened(x), widened(grad)
        products = grad * wide
        if x.dim() == 4 and r.shape[2:].numel() == 1:
            products = products.sum((2, 3), keepdim=True)
        weighted = products if weight is None else products * per_channel(weight, x)
        through = weighted.sum(ctx.dims, keepdim=True).mul_(slope)
        dx = scaled(grad, r, weight).addcmul_(wide, through, value=-1).to(x.dtype)
        dgamma = products.mul_(r).sum(batch_axes(x)) if ctx.needs_input_grad[1] else None
        dbeta = grad.sum(batch_axes(x)) if ctx.needs_input_grad[2] else None
        return dx, dgamma, dbeta, None, None, None


def root_mean_square(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return sqrt(E[x^2]) over `dims`, which stay as ones."""
    count = math.prod(x.shape[d] for d in dims)
    if any(x.stride(d) == 1 for d in dims):  # one pass, but many times slower than two where they lie apart
        norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(dims), keepdim=True)
        return norm.div_(math.sqrt(count))
    return x.square().sum(tuple(dims), keepdim=True).div_(count).sqrt_()


def factor_and_slope(root: Tensor, count: int, eps: float, eps_outside: bool) -> tuple[Tensor, Tensor]:
    """Return r = 1 / sqrt(root^2 + eps), or 1 / (root + eps), and -2 / count times its derivative by root^2.

    `root` is the root of a mean of `count` squares. Where it is 0 all of them are, and any finite derivative will do.
    """
    if eps_outside:
        r = (root + eps).reciprocal_()
        return r, r.square().div_(root.clamp(min=math.sqrt(torch.finfo(root.dtype).tiny)).mul_(count))
    r = root.square().add_(eps).rsqrt_()
    return r, r.pow(3).div_(count)


def scaled(x: Tensor, r: Tensor, weight: Tensor | None) -> Tensor:
    """Return x * r * gamma; the factors are multiplied first where their product is small."""
    if weight is None:
        return x * r
    if r.shape[2:].numel() == 1:
        return x * (r * per_channel(weight, x))
    return (x * r).mul_(per_channel(weight, x))
