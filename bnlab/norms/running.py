"""Layers that evaluate with running statistics, which training moves step by step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.norms.derivatives import transformed
from bnlab.norms.formula import batch_axes, count_per_channel, deviation, moments, normalize, per_channel
from bnlab.norms.strategy import NormLayer, Strategy, fraction_left
from bnlab.schema import param


def momentum_param() -> Any:
    """Declare `momentum` of a strategy with running statistics: new = (1 - momentum) * old + momentum * batch."""
    return param(0.1, "weight of the new batch in the running statistics; null: average of all", above=0.0, high=1.0)


class RunningLayer(NormLayer):
    """A layer that evaluates with running statistics: mean from 0, variance from 1, as torch starts them.

    The variance is the unbiased one, 1 / (n - 1), unless `unbiased` is False.

    A layer whose statistics are those of the training set says so by `refresh_every`; `measure/refresh.py` then
    takes them and puts them in.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    refresh_every: int | None = None  # None: moves its own; 0: taken once, at the start; k: before every k-th step
    evaluated_anew: bool = False  # evaluation takes them under the weights that it evaluates
    refresh_samples: int | None = None  # taken from the first so many samples of the training split; None: from all
    gradient_through: bool = False  # the gradient goes through the statistics, which are then `leaves`
    leaves: tuple[Tensor, Tensor] | None = None  # mean and variance that gather their gradient, inside a step only
    unbiased: bool = True

    def __init__(self, channels: int, strategy: Strategy, momentum: float | None) -> None:
        super().__init__(channels, strategy)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def affine_map(self) -> tuple[Tensor, Tensor] | None:
        """Evaluation is scale * x + shift with scale = gamma / sqrt(var + eps), shift = beta - scale * mean."""
        scale = deviation(self.running_var, self.eps, self.eps_outside).reciprocal()
        scale = scale if self.weight is None else scale * self.weight.detach()
        shift = -self.running_mean * scale
        return scale, shift if self.bias is None else shift + self.bias.detach()

    def values_read(self, x: Tensor) -> int | None:
        """Return over how many values of `x` a training step takes the biased variance it divides by; None: no such."""
        return count_per_channel(x)

    def initial_left(self) -> float | None:
        """Return the share of mean 0 and variance 1 left in the running statistics; None: they do not fade so."""
        return fraction_left(self.momentum, int(self.num_batches_tracked))

    def with_running(self, x: Tensor) -> Tensor:
        """Normalize with the running statistics, as evaluation does."""
        if self.eps_outside:
            mean, var = per_channel(self.running_mean, x), per_channel(self.running_var, x)
            return normalize(x, mean, var, self.gamma, self.beta, self.eps, True)
        return F.batch_norm(x, self.running_mean, self.running_var, self.gamma, self.beta, False, 0.0, self.eps)

    def on_whole_batch(self, x: Tensor) -> Tensor:
        """Normalize with the statistics of all of `x` and update the running ones."""
        momentum = self.momentum if self.unbiased else None  # that torch's own update can be given
        if self.eps_outside or (momentum is None and transformed()):  # vmap loses what is left in views of buffers
            return self.on_part(x, x)
        if momentum is not None:
            self.num_batches_tracked.add_(1)
            return F.batch_norm(x, self.running_mean, self.running_var, self.gamma, self.beta, True, momentum, self.eps)
        mean, var = self.empty_stats(1).view(2, -1).unbind()
        y = F.batch_norm(x, mean, var, self.gamma, self.beta, True, 1.0, self.eps)
        self.update(mean, self.kept(var, count_per_channel(x)))
        return y

    def kept(self, unbiased_var: Tensor, count: int) -> Tensor:
        """Return the variance of `count` values that goes into the running one."""
        return unbiased_var if self.unbiased else unbiased_var * ((count - 1) / count)

    def on_part(self, x: Tensor, part: Tensor) -> Tensor:
        """Normalize `x` with the statistics of `part` by the written-out formula and update the running ones."""
        mean, var = moments(part, batch_axes(x))
        count = count_per_channel(part)
        self.update(mean.detach().flatten(), self.kept(var.detach().flatten() * (count / (count - 1)), count))
        return normalize(x, mean, var, self.gamma, self.beta, self.eps, self.eps_outside)

    def update(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards those of one batch, and count one update.

        A cumulative average weighs by that count, which stays on the device.
        """
        self.num_batches_tracked.add_(1)
        weight = self.num_batches_tracked.to(mean.dtype).reciprocal() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(var, weight)

    def empty_stats(self, groups: int) -> Tensor:
        """Return zeros of shape (2, groups, C): buffers for means and variances.

        `F.batch_norm` with such buffers and momentum 1 leaves the mean and the unbiased variance of its batch in them,
        so the statistics cost no pass of their own.
        """
        return self.running_mean.new_zeros(2, groups, self.channels)
