"""Batch normalization with noise behind it that shifts and scales every channel anew at every step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bnlab.distributed import group_rank
from bnlab.norms.batch import Batch, BatchLayer
from bnlab.norms.formula import widened
from bnlab.norms.share import eager_forward
from bnlab.norms.strategy import OF_THE_BATCH, NormLayer, strategies
from bnlab.schema import param

BITS = 2**32 - 1
MOST_SAMPLES = 2**20  # of a worker in a batch


@strategies.register("noisy")
@dataclass(frozen=True, kw_only=True)
class Noisy(Batch):
    """Normalize as `batch`, then in training scale and shift by noise whose distribution is another at every step.

    z = s * y + m with y of `batch`, gamma and beta in it. At every step each channel j draws a distribution,
    mu_j ~ U(-shift, shift) and sigma_j ~ U(1, scale), and each sample i draws from it m_ij ~ U(mu_j - jitter,
    mu_j + jitter) and s_ij ~ N(sigma_j, jitter^2), the same for all pixels of a channel: noise of a mean that is not 0
    and a deviation that is not 1, never the same twice. No gradient goes through it. Evaluation is that of `batch`, and
    so is a batch that cannot be normalized; running statistics are those in front of the noise.

    The numbers are a function of the seed of the run, the layer, its step, the sample and the channel. They come from
    no generator, so that weights, order and dropout are those of `batch`, and a resumed run draws what it would have.

    After Santurkar, Tsipras, Ilyas and Madry, "How Does Batch Normalization Help Optimization?", 2018, section 2.2:
    noise of a mean that is not 0 and a variance that is not 1, another at every step, makes the distributions less
    stable than without normalization. The form here and its defaults, shift 0.5, scale 1.25, jitter 0.1, are one such
    noise, and were not compared with the authors' code.
    """

    shift: float = param(0.5, "largest mean of the noise that is added, drawn for each step and channel", low=0.0)
    scale: float = param(1.25, "largest mean of the noise that is multiplied; the least is 1", low=1.0)
    jitter: float = param(0.1, "how far the noise of each sample is from those means", low=0.0)

    facts = replace(OF_THE_BATCH, adds_noise=True)

    def layer(self, channels: int) -> NormLayer:
        return NoisyLayer(channels, self)


class NoisyLayer(BatchLayer):
    """`BatchLayer`, and noise by counters: `num_batches_tracked`, on the device and in the state dict, is the step."""

    forward = eager_forward
    adds_noise = True

    def __init__(self, channels: int, strategy: Noisy) -> None:
        super().__init__(channels, strategy)
        self.shift, self.scale, self.jitter = strategy.shift, strategy.scale, strategy.jitter
        self.noise_seed = 0

    def seed(self, number: int) -> None:
        self.noise_seed = number & BITS

    def normalized(self, x: Tensor) -> Tensor:
        y = super().normalized(x)
        if not self.training or self.values_read(x) == 1:
            return y
        added, factor = (noise.view(*noise.shape, *(1,) * (x.dim() - 2)) for noise in self.noise(len(x)))
        return torch.addcmul(added, factor, widened(y)).to(x.dtype)

    def noise(self, samples: int) -> tuple[Tensor, Tensor]:
        """Return m and s of the step that `num_batches_tracked` has counted last, of shape (samples, C)."""
        step = mixed(self.num_batches_tracked + self.noise_seed)
        rows = group_rank() * MOST_SAMPLES + torch.arange(samples, device=step.device)
        channels = mixed(step + torch.arange(self.channels, device=step.device))
        cells = mixed(channels + mixed(rows)[:, None])
        draws = torch.arange(1, 3, device=step.device)
        mean, deviation = uniform(mixed(channels + draws[:, None]), self.running_mean.dtype)
        own, other = uniform(mixed(cells + draws[:, None, None]), self.running_mean.dtype)
        normal = 2**0.5 * torch.erfinv(2 * other - 1)
        added = self.shift * (2 * mean - 1) + self.jitter * (2 * own - 1)
        return added, 1 + (self.scale - 1) * deviation + self.jitter * normal


def mixed(keys: Tensor) -> Tensor:
    """Return 32 bits for each key that look random: the finalizer of MurmurHash3 (Appleby, public domain)."""
    keys = keys & BITS
    keys = ((keys ^ (keys >> 16)) * 0x85EBCA6B) & BITS
    keys = ((keys ^ (keys >> 13)) * 0xC2B2AE35) & BITS
    return keys ^ (keys >> 16)


def uniform(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers between 0 and 1, never one of the two, from 32 bits each; float32 holds them exactly."""
    return ((bits >> 9).to(dtype) + 0.5) / 2**23
