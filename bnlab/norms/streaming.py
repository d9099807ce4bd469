"""Streaming normalization: running statistics that already include the batch, in training as in evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnlab.norms.derivatives import transformed
from bnlab.norms.formula import batch_axes, count_per_channel, moments, normalize, per_channel
from bnlab.norms.running import RunningLayer, momentum_param
from bnlab.norms.share import ShareNorm, batch_statistics, eager_forward
from bnlab.norms.strategy import Facts, InitialShare, NormLayer, OverSamples, share_left, strategies


@strategies.register("streaming")
@dataclass(frozen=True, kw_only=True)
class Streaming(OverSamples):
    """Normalize each channel by running statistics that already include the batch; works from batches of 1 on.

    y = gamma * (x - mu_t) / sqrt(v_t + eps) + beta with, for a batch of mean mu_B and biased variance Var_B over axes N
    (and H, W) per channel and m = momentum, mean and variance of the mixture of the past and the batch:
    mu_t = (1 - m) * mu_{t-1} + m * mu_B, v_t = (1 - m) * var_{t-1} + m * Var_B + m * (1 - m) * (mu_B - mu_{t-1})^2.
    The stored var_t is the same with the unbiased variance of the batch (0 for one value a channel); evaluation uses
    mu_t and var_t. They start from 0 and 1. The gradient goes through the batch's share m of the statistics only.

    momentum = 1 is `batch`, except that one value a channel gives beta. `momentum=null` takes m = 1/t, so that all
    batches so far weigh alike. Batches of 1 in place of a batch of n then end with the same mean and with (n-1)/n of
    the variance, and the last sample has the same output; with a fixed momentum they differ from the batch of n: each
    of them has the weight of a batch, and (1-m)^n of the past is left in place of 1-m.

    The idea of streaming statistics is that of Liao, Kawaguchi and Poggio, "Streaming Normalization", 2016; this form
    is bnlab's. Defaults: momentum 0.1, eps 1e-5, affine.
    """

    momentum: float | None = momentum_param()

    @property
    def facts(self) -> Facts:
        whole = self.momentum == 1
        return Facts(reads_batch=True, keeps_stats=True, cancels_bias=whole, cancels_shift=whole, cancels_scale=whole)

    def layer(self, channels: int) -> NormLayer:
        return StreamingLayer(channels, self)

    def initial_share(self, steps: int, batch_size: int) -> InitialShare | None:
        return share_left(self.momentum, steps, updates_per_step=1)


class StreamingLayer(RunningLayer):
    """The statistics of the batch, their mixture with the running ones, and one fused call with the mixture."""

    forward = eager_forward

    def __init__(self, channels: int, strategy: Streaming) -> None:
        super().__init__(channels, strategy, strategy.momentum)

    def values_read(self, x: Tensor) -> None:
        """It divides by the variance of a mixture."""

    def initial_left(self) -> None:
        """The initial mean is also in the variance, by its distance to the batches."""

    def normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.with_running(x)
        self.num_batches_tracked.add_(1)
        share: float | Tensor
        if self.momentum is None:
            share = self.num_batches_tracked.to(self.running_mean.dtype).reciprocal()
        else:
            share = self.momentum
        if self.eps_outside or transformed():
            return self._written_out(x, share)
        mean, var = batch_statistics(x, self.running_mean)
        mixed_mean, mixed_var = self._mixed(mean, var, share)
        self._store(mixed_mean, mixed_var, var, share, count_per_channel(x))
        y: Tensor = ShareNorm.apply(x, mixed_mean, mixed_var, self.gamma, self.beta, self.eps, share)
        return y

    def _written_out(self, x: Tensor, share: float | Tensor) -> Tensor:
        mean, var = (statistic.flatten() for statistic in moments(x, batch_axes(x)))
        mixed_mean, mixed_var = self._mixed(mean, var, share)
        whole = per_channel(mixed_mean, x), per_channel(mixed_var, x)
        y = normalize(x, *whole, self.gamma, self.beta, self.eps, self.eps_outside)
        self._store(mixed_mean.detach(), mixed_var.detach(), var.detach(), share, count_per_channel(x))
        return y

    def _mixed(self, mean: Tensor, var: Tensor, share: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the mixture of the running statistics and those of a batch."""
        shift = mean - self.running_mean
        mixed_mean = torch.lerp(self.running_mean, mean, share)
        return mixed_mean, torch.lerp(self.running_var, var, share) + share * (1 - share) * shift.square()

    def _store(self, mean: Tensor, var: Tensor, batch_var: Tensor, share: float | Tensor, count: int) -> None:
        """Keep a mixture, with the unbiased variance of the batch in place of the biased one."""
        self.running_mean.copy_(mean)
        self.running_var.copy_(var + share * batch_var / max(count - 1, 1))
