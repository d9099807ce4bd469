"""What every normalization strategy is: parameters, declared facts, and a layer for a number of channels.

Every strategy computes `y = gamma * (x - mu) / sqrt(var + eps) + beta` over `(N, C)` or `(N, C, H, W)`; they differ in
where `mu` and `var` come from. Nothing outside this package asks which strategy it holds: the facts tell.

A strategy may ask for more than a layer: that the layer before it transforms its weights (`weight_transform`), that its
own activation replaces the model's (`activation`), or that its statistics are taken from the training set
(`facts.reads_training_set`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bnlab.norms.formula import is_channels_last, moments, normalize
from bnlab.registry import Registry
from bnlab.schema import param


@dataclass(frozen=True)
class Facts:
    """What a strategy says of itself; `tests/test_norm_facts.py` proves each on random tensors."""

    reads_batch: bool = False  # while training, the output for one sample depends on the other samples of the batch
    keeps_stats: bool = False  # holds statistics that evaluation uses
    cancels_bias: bool = False  # a per-channel bias in front of it is dead: without effect on the output, or gradient
    needs_space: bool = False  # undefined without H x W
    needs_batch: bool = False  # training is undefined for a batch with one value a channel
    cancels_shift: bool = False  # a bias common to all channels is dead
    cancels_scale: bool = False  # so is a positive factor common to all weights in front of it, up to eps
    exact_gradient: bool = True  # its gradient is the derivative of the training output, no quantity held constant
    spans_workers: bool = False  # the batch it reads is that of all workers of a data-parallel training
    reads_training_set: bool = False  # its statistics are those of the training set, put into it from outside
    adds_noise: bool = False  # its training output has noise that does not come from the batch
    refreshes: bool = True  # those are taken again as the weights change; False: once, at initialization


OF_THE_BATCH = Facts(  # of a strategy that normalizes each channel by the batch, and evaluates with running statistics
    reads_batch=True, keeps_stats=True, cancels_bias=True, needs_batch=True, cancels_shift=True, cancels_scale=True
)


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
    affine: Literal["true", "false", "gamma", "beta", "layer"] = param(
        "true", "learn gamma and beta, a pair a channel; neither; only gamma or only beta; or one pair a layer"
    )
    eps_outside: bool = param(False, "divide by sqrt(var) + eps instead of sqrt(var + eps)")

    def __post_init__(self) -> None:
        if isinstance(self.affine, bool):  # YAML reads true and false as booleans
            object.__setattr__(self, "affine", str(self.affine).lower())

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """Return the facts of this strategy with these parameters."""

    @abstractmethod
    def layer(self, channels: int) -> NormLayer:
        """Return a fresh layer for `(N, channels)` or `(N, channels, H, W)`; it draws no random numbers.

        Errors: IncompatibleError when the parameters do not fit the number of channels.
        """

    @property
    def per_activation(self) -> bool:
        """Whether its statistics are those of each pixel of a channel by itself."""
        return False

    def layer_for(self, channels: int, pixels: int) -> nn.Module:
        """Return a fresh layer as it stands in a model, behind what has so many channels of so many pixels."""
        return PerActivation(self.layer(channels * pixels)) if self.per_activation else self.layer(channels)

    @property
    def weight_transform(self) -> Callable[[Tensor], Tensor] | None:
        """What the convolution or linear layer before it does to its weights, shape (C, ...), in every forward pass."""
        return None

    def activation(self, channels: int) -> NormModule | None:
        """Return the activation that belongs to it and replaces the model's; None: the model keeps its own."""
        return None

    def check_batch(self, batch_size: int) -> None:  # noqa: B027  (most strategies take every batch)
        """Refuse a batch size that these parameters make no sense with. Errors: IncompatibleError."""

    def samples_read(self, batch_size: int) -> int:
        """Return how many samples of a batch its statistics are taken from."""
        return batch_size

    def initial_share(self, steps: int, batch_size: int) -> InitialShare | None:
        """Return what is left of the initial statistics after `steps`; None without running statistics."""
        return None


strategies: Registry[Strategy] = Registry("norm", "bnlab.norms")


def share_left(momentum: float | None, steps: int, updates_per_step: int) -> InitialShare:
    """Return the share of the initial statistics after `steps` of `updates_per_step` moving-average updates each.

    A cumulative average (`momentum=None`) forgets its start with the first update and never reaches a half-life.
    """
    left = fraction_left(momentum, steps * updates_per_step)
    if momentum is None:
        return InitialShare(None, None, left, None)
    half_life = math.log(0.5) / math.log1p(-momentum) / updates_per_step if momentum < 1 else 0.0
    return InitialShare(momentum, 1 - momentum, left, half_life)


def fraction_left(momentum: float | None, updates: int) -> float:
    """Return (1 - momentum)^updates; of a cumulative average (None) nothing is left after the first."""
    if momentum is None:
        return 0.0 if updates else 1.0
    return float((1 - momentum) ** updates)


class NormModule(nn.Module):
    """A module that a strategy brings into a model; the optimizer can spare its parameters weight decay."""


class NormLayer(NormModule, ABC):
    """Base of all layers: gamma and beta, and the count of batches it could not normalize.

    What is learned is `weight` and `bias`, of shape (C,), or (1,) with `affine=layer`; `gamma` and `beta` are what the
    formula takes: both of shape (C,), or neither.
    `forward` checks the input and calls `normalized`, which returns a tensor of the input's shape, dtype and memory
    layout. Errors: ValueError for a wrong rank, a wrong number of channels or an empty batch.
    """

    weight: Tensor | None
    bias: Tensor | None
    adds_noise: ClassVar[bool] = False  # as its strategy's facts say

    def __init__(self, channels: int, strategy: Strategy) -> None:
        super().__init__()
        self.channels = channels
        self.eps = strategy.eps
        self.eps_outside = strategy.eps_outside
        self.affine = strategy.affine
        size = 1 if self.affine == "layer" else channels
        self.weight = nn.Parameter(torch.ones(size)) if self.affine in ("true", "gamma", "layer") else None
        self.bias = nn.Parameter(torch.zeros(size)) if self.affine in ("true", "beta", "layer") else None
        self.num_unnormalizable = 0  # batches with one value a channel, see the batch policy in batch.py

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.channels)
        return self.normalized(x)

    @property
    def gamma(self) -> Tensor | None:
        """Return gamma of shape (C,): ones where only beta is learned."""
        return self._of_each_channel(self.weight, self.bias, 1.0)

    @property
    def beta(self) -> Tensor | None:
        """Return beta of shape (C,): zeros where only gamma is learned."""
        return self._of_each_channel(self.bias, self.weight, 0.0)

    def _of_each_channel(self, learned: Tensor | None, other: Tensor | None, constant: float) -> Tensor | None:
        if learned is None:
            return None if other is None else torch.full_like(other, constant, requires_grad=False)
        return learned.repeat(self.channels) if self.affine == "layer" else learned

    def seed(self, number: int) -> None:
        """Learn, when the model is built, what the random numbers follow from; most layers have none."""

    def begin(self, total_steps: int) -> None:
        """Learn, before the first step, how many training passes the run has: its steps, times their micro-batches."""

    @abstractmethod
    def normalized(self, x: Tensor) -> Tensor:
        """Return the normalized input."""

    def affine_map(self) -> tuple[Tensor, Tensor] | None:
        """Return (scale, shift), shape (C,) each, with evaluation = scale * x + shift; None: it is no such map."""
        return None

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps:g}, affine={self.affine}"

    def written_out(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Normalize with the statistics over `dims` by the written-out formula."""
        mean, var = moments(x, dims)
        return normalize(x, mean, var, self.gamma, self.beta, self.eps, self.eps_outside)


@dataclass(frozen=True, kw_only=True)
class OverSamples(Strategy):
    """A strategy whose statistics are over samples, and over the pixels of a channel unless told otherwise."""

    per: Literal["channel", "activation"] = param(
        "channel", "statistics, gamma and beta of each channel, or of each of its pixels by itself"
    )

    @property
    def per_activation(self) -> bool:
        return self.per == "activation"


class PerActivation(nn.Module):
    """A layer for (N, C * H * W) in the place of one for (N, C, H, W): each activation is a channel of its own.

    Ioffe and Szegedy 2015, section 3.2, have it so for all but convolutions, whose pixels share one transform.
    """

    def __init__(self, layer: NormLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(1)).view(x.shape)
        return y.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else y


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
