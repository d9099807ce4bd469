"""Batch renormalization: training normalizes with the batch, corrected towards what evaluation will use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bnlab.norms.derivatives import refuse_second_derivative, refuse_transforms
from bnlab.norms.formula import batch_axes, count_per_channel, deviation, moments, normalize
from bnlab.norms.running import RunningLayer, momentum_param
from bnlab.norms.share import ShareNorm, batch_statistics, eager_forward
from bnlab.norms.strategy import OF_THE_BATCH, InitialShare, NormLayer, OverSamples, share_left, strategies
from bnlab.schema import param

HELD = "its gradient holds r and d constant"


@strategies.register("renorm")
@dataclass(frozen=True, kw_only=True)
class Renorm(OverSamples):
    """Normalize each channel over the batch (and H, W), corrected within bounds towards the running statistics.

    y = gamma * ((x - mu_B) / sigma_B * r + d) + beta, r = clip(sigma_B / sigma, 1 / r_max, r_max),
    d = clip((mu_B - mu) / sigma, -d_max, d_max), with the mean mu_B and deviation sigma_B = sqrt(Var_B + eps) of the
    batch (Var_B biased, per channel) and mu, sigma those of the running statistics before this step. The gradient takes
    r and d for constants. Where neither is clipped, y is what evaluation would give; r_max = 1, d_max = 0 is `batch`.

    For the first `warmup` of the run r = 1 and d = 0; over the next `ramp` of it both bounds grow linearly to r_max and
    d_max. Both are fractions of the run (the published schedule, in steps from 5,000 on, never starts in a short run);
    a layer that was not told the length of the run has the full bounds. Evaluation, running statistics, `momentum` and
    the batch policy are those of `batch`.

    Ioffe, "Batch Renormalization", 2017; there the running average is of sigma_B, here of the unbiased variance, as in
    `batch`. Defaults: r_max 3 and d_max 5 as published, momentum 0.1, eps 1e-5, affine.
    """

    r_max: float = param(3.0, "largest correction of the scale, as a factor", low=1.0)
    d_max: float = param(5.0, "largest correction of the mean, in running deviations", low=0.0)
    warmup: float = param(0.05, "share of the run without correction", low=0.0, high=1.0)
    ramp: float = param(
        0.2, "share of the run after it, over which the bounds grow to r_max and d_max", low=0.0, high=1.0
    )
    momentum: float | None = momentum_param()

    facts = replace(OF_THE_BATCH, exact_gradient=False)

    def layer(self, channels: int) -> NormLayer:
        return RenormLayer(channels, self)

    def initial_share(self, steps: int, batch_size: int) -> InitialShare | None:
        return share_left(self.momentum, steps, updates_per_step=1)


class RenormLayer(RunningLayer):
    """r and d go into gamma and beta: y = (gamma * r) * xhat + (gamma * d + beta), one fused call.

    The number of steps done is `num_batches_tracked`, on the device and in the state dict.
    """

    forward = eager_forward

    def __init__(self, channels: int, strategy: Renorm) -> None:
        super().__init__(channels, strategy, strategy.momentum)
        self.r_max, self.d_max = strategy.r_max, strategy.d_max
        self.warmup, self.ramp = strategy.warmup, strategy.ramp
        self.total_steps: int | None = None

    def begin(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def values_read(self, x: Tensor) -> None:
        """It divides by the variance of the batch as corrected towards the running one."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the bounds (r_max, d_max) of the next training step, on the device."""
        grown = self.running_mean.new_ones(())
        if self.total_steps is not None:
            done = self.num_batches_tracked.to(grown.dtype) / self.total_steps
            grown = (
                ((done - self.warmup) / self.ramp).clamp(0, 1) if self.ramp else (done >= self.warmup).to(grown.dtype)
            )
        return 1 + grown * (self.r_max - 1), grown * self.d_max

    def normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.with_running(x)
        count = count_per_channel(x)
        if count == 1:
            self.num_unnormalizable += 1
            return self.with_running(x)
        refuse_transforms("renorm", HELD)
        if self.eps_outside:
            mean, var = moments(x, batch_axes(x))
            weight, bias = self._corrected(mean.detach().flatten(), var.detach().flatten())
            y = normalize(x, mean, var, weight, bias, self.eps, True)
            if y.requires_grad:
                y.register_hook(lambda grad: refuse_second_derivative("renorm", HELD))
            mean, var = mean.detach().flatten(), var.detach().flatten()
        else:
            mean, var = batch_statistics(x, self.running_mean)
            weight, bias = self._corrected(mean, var)
            y = CorrectedNorm.apply(x, mean, var, weight, bias, self.eps, 1.0)
        self.update(mean, var * (count / (count - 1)))
        return y

    def _corrected(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma * r and gamma * d + beta for a batch with this mean and biased variance."""
        r_max, d_max = self.bounds()
        sigma = deviation(self.running_var, self.eps, self.eps_outside)
        r = torch.clamp(deviation(var, self.eps, self.eps_outside) / sigma, r_max.reciprocal(), r_max)
        d = torch.clamp((mean - self.running_mean) / sigma, -d_max, d_max)
        if (gamma := self.gamma) is None or (beta := self.beta) is None:
            return r, d
        return gamma * r, gamma * d + beta


class CorrectedNorm(ShareNorm):
    """`ShareNorm` with r and d in gamma and beta, held constant: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("renorm", HELD)
        return ShareNorm.backward(ctx, grad)
