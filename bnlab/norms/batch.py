"""Batch normalization: each channel by its mean and variance over the batch; running averages in evaluation.

The batch policy: a training batch with one value a channel (N*H*W = 1, or a statistics subset of one value) has no
variance. It is normalized with the running statistics, leaves them as they are, and is counted in
`num_unnormalizable`; the shape alone decides, so nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.errors import IncompatibleError
from bnlab.norms.derivatives import through_formula, transformed
from bnlab.norms.formula import batch_axes, count_per_channel, is_channels_last, moments, normalize
from bnlab.norms.running import RunningLayer, momentum_param
from bnlab.norms.strategy import OF_THE_BATCH, InitialShare, NormLayer, OverSamples, share_left, strategies
from bnlab.schema import param


@strategies.register("batch")
@dataclass(frozen=True, kw_only=True)
class Batch(OverSamples):
    """Normalize each channel over the batch (and H, W).

    y = gamma * (x - E[x]) / sqrt(Var[x] + eps) + beta, Var biased (1/n), over axes N (and H, W) per channel.
    Evaluation uses running averages: new = (1 - momentum) * old + momentum * batch, of the mean and of the unbiased
    variance (n/(n-1)), from 0 and 1; with `unbiased=false` of the biased one, as in Keras 3. TensorFlow's decay is
    1 - momentum. `momentum=null` averages all steps alike.
    With `stat_stride` or `stat_samples` mean and variance are those of a part of the batch; the gradient goes through
    them.

    Ioffe and Szegedy, "Batch Normalization", 2015. Defaults as torch.nn.BatchNorm2d: eps 1e-5, momentum 0.1, affine.
    """

    momentum: float | None = momentum_param()
    stat_stride: int = param(1, "statistics from every k-th row and column", low=1)
    stat_samples: int | None = param(None, "statistics from the first n samples; null: from all", low=1)
    unbiased: bool = param(True, "the running variance is of 1/(n-1); false: of 1/n")

    facts = OF_THE_BATCH

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stat_stride > 1 and self.per_activation:
            raise IncompatibleError(
                f"norm.stat_stride={self.stat_stride}: leaves pixels out, and with norm.per=activation each has "
                "statistics of its own\nset norm.stat_stride=1 or norm.per=channel"
            )

    def layer(self, channels: int) -> NormLayer:
        return BatchLayer(channels, self)

    def samples_read(self, batch_size: int) -> int:
        return batch_size if self.stat_samples is None else min(self.stat_samples, batch_size)

    def initial_share(self, steps: int, batch_size: int) -> InitialShare | None:
        return share_left(self.momentum, steps, updates_per_step=1)


class BatchLayer(RunningLayer):
    """`F.batch_norm` with its running update, unless the parameters ask for what it does not have.

    On CPU in channels_last that kernel adds up a channel's float32 values one after the other: with an offset of 1e4
    standard deviations and 50,000 values a channel the mean was off by 0.13 of one (contiguous: 0.001).
    """

    def __init__(self, channels: int, strategy: Batch) -> None:
        super().__init__(channels, strategy, strategy.momentum)
        self.stat_stride = strategy.stat_stride
        self.stat_samples = strategy.stat_samples
        self.unbiased = strategy.unbiased

    def values_read(self, x: Tensor) -> int:
        """Return the values a channel of the part that the statistics are taken from."""
        return count_per_channel(self._subset(x))

    def normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.with_running(x)
        subset = self._subset(x)
        if count_per_channel(subset) == 1:
            self.num_unnormalizable += 1
            return self.with_running(x)
        return self.on_whole_batch(x) if subset is x else self._on_subset(x, subset)

    def _on_subset(self, x: Tensor, subset: Tensor) -> Tensor:
        if self.eps_outside or transformed():
            return self.on_part(x, subset)
        mean, var = self.empty_stats(1).view(2, -1).unbind()
        layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        with torch.no_grad():
            F.batch_norm(subset.contiguous(memory_format=layout), mean, var, None, None, True, 1.0, self.eps)
        y: Tensor = SubsetNorm.apply(x, mean, var, self.gamma, self.beta, self.eps, self.stat_stride, self.stat_samples)
        self.update(mean, self.kept(var, count_per_channel(subset)))
        return y

    def _subset(self, x: Tensor) -> Tensor:
        return subset_of(x, self.stat_stride, self.stat_samples)


def subset_of(x: Tensor, stride: int, samples: int | None) -> Tensor:
    """Return the first `samples` of `x`, every `stride`-th row and column; `x` itself when that is all of it."""
    if samples is not None and samples < x.shape[0]:
        x = x[:samples]
    return x[:, :, ::stride, ::stride] if x.dim() == 4 and stride > 1 else x


class SubsetNorm(torch.autograd.Function):
    """Normalize by the statistics of a part of the batch, with the gradient through them, in torch's fused kernels.

    With r = 1/sqrt(var + eps), xhat = (x - mean) * r, a subset of m values and an incoming gradient g:
    dgamma = sum g * xhat, dbeta = sum g, dx = gamma * r * g, on the subset less
    gamma * r / m * (dbeta + xhat * dgamma).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        unbiased_var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        stride: int,
        samples: int | None,
    ) -> Tensor:
        count = count_per_channel(subset_of(x, stride, samples))
        var = unbiased_var * ((count - 1) / count)
        ctx.save_for_backward(x, mean, var, weight, bias)
        ctx.eps, ctx.stride, ctx.samples = eps, stride, samples
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx, dgamma, dbeta = through_formula(partial(_by_subset, ctx), grad, x, weight, bias)
            return dx, None, None, dgamma, dbeta, None, None, None
        gamma = torch.ones_like(mean) if weight is None else weight
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            grad, x, gamma, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        part = subset_of(x, ctx.stride, ctx.samples)
        count = count_per_channel(part)
        r = torch.rsqrt(var + ctx.eps)
        shape = (-1,) + (1,) * (x.dim() - 2)
        through = (part - mean.view(shape)) * (gamma * r * r * dgamma / count).view(shape)
        through += (gamma * r * dbeta / count).view(shape)
        subset_of(dx, ctx.stride, ctx.samples).sub_(through)
        if weight is None:
            return dx, None, None, None, None, None, None, None
        return dx, None, None, dgamma, dbeta, None, None, None


def _by_subset(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    part = subset_of(x, ctx.stride, ctx.samples)
    return normalize(x, *moments(part, batch_axes(x)), weight, bias, ctx.eps, False)
