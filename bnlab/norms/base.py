"""What every normalization strategy is: parameters, declared facts, and a layer for a number of channels.

Every strategy computes `y = gamma * (x - mu) / sqrt(var + eps) + beta` over `(N, C)` or `(N, C, H, W)`; they differ in
where `mu` and `var` come from. Nothing outside this package asks which strategy it holds: the facts tell.

The layers call torch's fused kernels. `moments` and `normalize` are the same formula written out; they serve the one
knob that no kernel has, `eps_outside`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.registry import Registry
from bnlab.schema import param


@dataclass(frozen=True)
class Facts:
    """What a strategy says of itself; `tests/test_norm_facts.py` proves each on random tensors."""

    reads_batch: bool  # while training, the output for one sample depends on the other samples of the batch
    keeps_stats: bool  # holds running statistics, so evaluation can differ from training
    cancels_bias: bool  # a per-channel bias in front of it has no effect on the training output
    needs_space: bool  # undefined without H x W


@dataclass(frozen=True)
class InitialShare:
    """How much of the initial statistics (mean 0, variance 1) is left in a moving average; None: no such value."""

    momentum: float | None  # torch's sense: new = (1 - momentum) * old + momentum * batch; None: cumulative average
    decay: float | None  # the other convention: 1 - momentum
    share_left: float  # (1 - momentum)^updates
    half_life_steps: float | None  # steps after which half of any old value is left


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """The parameters common to every strategy; a subclass adds its own and makes the layer."""

    name: ClassVar[str]

    eps: float = param(1e-5, "added to the variance", above=0.0)
    affine: bool = param(True, "learn gamma and beta, one pair a channel")
    eps_outside: bool = param(False, "divide by sqrt(var) + eps instead of sqrt(var + eps)")

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """Return the facts of this strategy with these parameters."""

    @abstractmethod
    def layer(self, channels: int) -> NormLayer:
        """Return a fresh layer for `(N, channels)` or `(N, channels, H, W)`; it draws no random numbers."""

    def check_batch(self, batch_size: int) -> None:  # noqa: B027  (most strategies take every batch)
        """Refuse a batch size that these parameters make no sense with. Errors: ConfigError."""

    def initial_share(self, steps: int, batch_size: int) -> InitialShare | None:
        """Return what is left of the initial statistics after `steps`; None without running statistics."""
        return None


strategies: Registry[Strategy] = Registry("norm")


def share_left(momentum: float | None, steps: int, updates_per_step: int) -> InitialShare:
    """Return the share of the initial statistics after `steps` of `updates_per_step` moving-average updates each.

    A cumulative average (`momentum=None`) forgets its start with the first update and never reaches a half-life.
    """
    if momentum is None:
        return InitialShare(None, None, 0.0 if steps else 1.0, None)
    half_life = math.log(0.5) / math.log1p(-momentum) / updates_per_step if momentum < 1 else 0.0
    return InitialShare(momentum, 1 - momentum, (1 - momentum) ** (steps * updates_per_step), half_life)


class NormLayer(nn.Module, ABC):
    """Base of all layers: gamma and beta of shape (C,), and the count of batches it could not normalize.

    `forward` checks the input and calls `normalized`, which returns a tensor of the input's shape, dtype and memory
    layout. Errors: ValueError for a wrong rank, a wrong number of channels or an empty batch.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, channels: int, strategy: Strategy) -> None:
        super().__init__()
        self.channels = channels
        self.eps = strategy.eps
        self.eps_outside = strategy.eps_outside
        self.weight = nn.Parameter(torch.ones(channels)) if strategy.affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if strategy.affine else None
        self.num_unnormalizable = 0  # batches with one value a channel, see the batch policy in batch.py

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.channels)
        return self.normalized(x)

    @abstractmethod
    def normalized(self, x: Tensor) -> Tensor:
        """Return the normalized input."""

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps:g}, affine={self.weight is not None}"

    def written_out(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Normalize with the statistics over `dims` by the written-out formula."""
        mean, var = moments(x, dims)
        return normalize(x, mean, var, self.weight, self.bias, self.eps, self.eps_outside)


class RunningLayer(NormLayer):
    """A layer that evaluates with running statistics: mean from 0, unbiased variance from 1, as torch starts them."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, strategy: Strategy, momentum: float | None) -> None:
        super().__init__(channels, strategy)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def with_running(self, x: Tensor) -> Tensor:
        """Normalize with the running statistics, as evaluation does."""
        if self.eps_outside:
            mean, var = per_channel(self.running_mean, x), per_channel(self.running_var, x)
            return normalize(x, mean, var, self.weight, self.bias, self.eps, True)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def on_whole_batch(self, x: Tensor) -> Tensor:
        """Normalize with the statistics of all of `x` and update the running ones."""
        if self.eps_outside:
            return self.on_part(x, x)
        if self.momentum is not None:
            self.num_batches_tracked.add_(1)
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
            )
        mean, var = self.empty_stats(1).view(2, -1).unbind()
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        self.update(mean, var)
        return y

    def on_part(self, x: Tensor, part: Tensor) -> Tensor:
        """Normalize `x` with the statistics of `part` by the written-out formula and update the running ones."""
        mean, var = moments(part, batch_axes(x))
        count = count_per_channel(part)
        self.update(mean.detach().flatten(), var.detach().flatten() * (count / (count - 1)))
        return normalize(x, mean, var, self.weight, self.bias, self.eps, self.eps_outside)

    def update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        """Move the running statistics towards those of one batch, and count one update.

        A cumulative average weighs by that count, which stays on the device.
        """
        self.num_batches_tracked.add_(1)
        weight = self.num_batches_tracked.to(mean.dtype).reciprocal() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(unbiased_var, weight)

    def empty_stats(self, groups: int) -> Tensor:
        """Return zeros of shape (2, groups, C): buffers for means and variances.

        `F.batch_norm` with such buffers and momentum 1 leaves the mean and the unbiased variance of its batch in them,
        so the statistics cost no pass of their own.
        """
        return self.running_mean.new_zeros(2, groups, self.channels)


def check_input(x: Tensor, channels: int) -> None:
    """Refuse what no strategy is defined for."""
    if x.dim() not in (2, 4):
        raise ValueError(
            f"a norm layer takes (N, C) or (N, C, H, W), got shape {tuple(x.shape)}\n"
            "reshape the input to 2 or 4 dimensions"
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"this norm layer has {channels} channels, the input has {x.shape[1]} (shape {tuple(x.shape)})\n"
            "make the layer with strategy.layer(channels of the layer before it)"
        )
    if x.numel() == 0:
        raise ValueError(
            f"a norm layer needs at least one value a channel, got shape {tuple(x.shape)}\nskip empty batches"
        )


def count_per_channel(x: Tensor) -> int:
    """Return N * H * W, from the shape alone."""
    return x.numel() // x.shape[1]


def batch_axes(x: Tensor) -> tuple[int, ...]:
    """Return every axis but the channel's."""
    return (0, *range(2, x.dim()))


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """View (C,) so that it broadcasts over `x`."""
    return values.view(1, -1, *(1,) * (x.dim() - 2))


def moments(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over `dims`, which stay as ones, in at least float32."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(wide, tuple(dims), correction=0, keepdim=True)
    return mean, var


def normalize(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, eps_outside: bool
) -> Tensor:
    """Return `(x - mean) * gamma / sqrt(var + eps) + beta` in the dtype of `x`.

    With `eps_outside` the divisor is `sqrt(var) + eps`; the variance is kept above the smallest positive number, so
    that a constant channel has gradient 0 and not 0 * inf. Subtracting first keeps a large offset from cancelling.
    """
    deviation = var.clamp(min=torch.finfo(var.dtype).tiny).sqrt() + eps if eps_outside else torch.sqrt(var + eps)
    scale = deviation.reciprocal()
    if weight is not None:
        scale = scale * per_channel(weight, x)
    centred = (x - mean) * scale
    return (centred if bias is None else centred + per_channel(bias, x)).to(x.dtype)


def kernel_input(x: Tensor, weight: Tensor | None) -> Tensor:
    """Widen a bfloat16 or float16 input on CUDA, whose layer and group norm do not mix it with float32 parameters."""
    return x.float() if x.is_cuda and x.dtype in (torch.float16, torch.bfloat16) and weight is not None else x


def is_channels_last(x: Tensor) -> bool:
    """Tell whether the channel is the fastest axis; an input that is also contiguous counts as contiguous."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
