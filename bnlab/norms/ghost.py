"""Ghost batch normalization: batch normalization over parts of the batch, each part by itself.

Which samples form a ghost batch: consecutive ones. Ghost k holds samples k*size to (k+1)*size - 1; a remainder smaller
than `size` is its own ghost, a remainder of 1 joins the ghost before it. The definition does not depend on the memory
layout, and equals shards of consecutive samples on several workers. (A strided choice would make contiguous input one
fused call on a view, but cost a copy in channels_last, the default of the CNN here.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bnlab.errors import IncompatibleError
from bnlab.norms.derivatives import transformed
from bnlab.norms.formula import batch_axes, count_per_channel, is_channels_last, moments, normalize
from bnlab.norms.running import RunningLayer, momentum_param
from bnlab.norms.strategy import OF_THE_BATCH, InitialShare, NormLayer, OverSamples, share_left, strategies
from bnlab.schema import param

# From this many equal ghosts of at most so many values on, one call on a copy beats one call a ghost (on 2 CPU cores:
# 0.4 of the time for 16 ghosts of 4 x 256 values; 1.2 of it for 4 ghosts of 16 x 32 x 28 x 28).
FOLD_GHOSTS = 4
FOLD_VALUES = 2**16


@strategies.register("ghost")
@dataclass(frozen=True, kw_only=True)
class Ghost(OverSamples):
    """Normalize each channel over consecutive groups of `size` samples of the batch (and H, W).

    y = gamma * (x - E[x]) / sqrt(Var[x] + eps) + beta, Var biased, over axes n (and H, W) per ghost and channel; one
    gamma and beta for all ghosts. size >= N is `batch`. Evaluation uses running statistics and never the batch:
    `update=pooled` averages once a step with mean and unbiased variance of the whole batch, pooled from the ghosts;
    `update=sequential` averages once a ghost, in order, with its own unbiased variance, as first published.
    `momentum=null` averages all updates alike. The batch policy is that of `batch`.

    Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017. Defaults: size 32, pooled, eps 1e-5,
    momentum 0.1, affine.
    """

    size: int = param(32, "samples in a ghost batch", low=2)
    update: Literal["pooled", "sequential"] = param("pooled", "running statistics once a step or once a ghost")
    momentum: float | None = momentum_param()

    facts = OF_THE_BATCH

    def layer(self, channels: int) -> NormLayer:
        return GhostLayer(channels, self)

    def check_batch(self, batch_size: int) -> None:
        if self.size > batch_size:
            raise IncompatibleError(
                f"norm.size={self.size}: must be at most data.batch_size={batch_size}\n"
                "a ghost batch is a part of the batch; for the whole batch take norm=batch"
            )

    def initial_share(self, steps: int, batch_size: int) -> InitialShare | None:
        updates = 1 if self.update == "pooled" else len(ghost_sizes(batch_size, self.size))
        return share_left(self.momentum, steps, updates)


def ghost_sizes(samples: int, size: int) -> list[int]:
    """Return the sizes of the ghosts of a batch, in order: ghost_sizes(70, 32) is [32, 32, 6], of 65 [32, 33]."""
    full, rest = divmod(samples, size)
    if full == 0:
        return [rest]
    if rest == 1:
        return [size] * (full - 1) + [size + 1]
    return [size] * full + ([rest] if rest else [])


class GhostLayer(RunningLayer):
    """One fused call a ghost, or one for all equal ghosts where they are many and small; no statistics pass of its own.

    In channels_last the batch is a table of N*H*W rows by C: a ghost is a block of consecutive rows.
    """

    def __init__(self, channels: int, strategy: Ghost) -> None:
        super().__init__(channels, strategy, strategy.momentum)
        self.size = strategy.size
        self.sequential = strategy.update == "sequential"

    def values_read(self, x: Tensor) -> int:
        """Return the values a channel of a whole ghost."""
        return count_per_channel(x[: self.size])

    def normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.with_running(x)
        if count_per_channel(x) == 1:
            self.num_unnormalizable += 1
            return self.with_running(x)
        if self.size >= x.shape[0]:
            return self.on_whole_batch(x)
        sizes = ghost_sizes(x.shape[0], self.size)
        stats = self.empty_stats(len(sizes))
        pixels = count_per_channel(x) // x.shape[0]
        if is_channels_last(x):
            n, c, h, w = x.shape
            rows = x.permute(0, 2, 3, 1).view(n * h * w, c)
            y = self._ghosts(rows, [s * pixels for s in sizes], stats).view(n, h, w, c).permute(0, 3, 1, 2)
        else:
            y = self._ghosts(x, sizes, stats)
        self._track(stats, [s * pixels for s in sizes])
        return y

    def _ghosts(self, x: Tensor, sizes: Sequence[int], stats: Tensor) -> Tensor:
        """Normalize each run of `sizes` samples (or rows) of `x`; leave means and unbiased variances in `stats`."""
        if self.eps_outside or transformed():  # vmap loses what a kernel leaves in views of `stats`
            return torch.cat(
                [self._explicit(p, s) for p, s in zip(torch.split(x, list(sizes)), stats.unbind(1), strict=True)]
            )
        equal = len(sizes) - (sizes[-1] != sizes[0])
        if equal >= FOLD_GHOSTS and x[: sizes[0]].numel() <= FOLD_VALUES:
            length = equal * sizes[0]
            folded = self._folded(x[:length], equal, stats[:, :equal])
            if equal == len(sizes):
                return folded
            return torch.cat([folded, self._fused(x[length:], *stats[:, -1].unbind())])
        pairs = zip(torch.split(x, list(sizes)), stats[0].unbind(), stats[1].unbind(), strict=True)
        return torch.cat([self._fused(part, mean, var) for part, mean, var in pairs])

    def _fused(self, part: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(part, mean, var, self.gamma, self.beta, True, 1.0, self.eps)

    def _folded(self, x: Tensor, ghosts: int, stats: Tensor) -> Tensor:
        """Normalize equal ghosts in one call: a copy with the ghosts beside each other as channels."""
        rest = x.shape[2:]
        length = x.shape[0] // ghosts
        wide = x.reshape(ghosts, length, self.channels, *rest).transpose(0, 1)
        wide = wide.reshape(length, ghosts * self.channels, *rest)
        weight = None if (gamma := self.gamma) is None else gamma.repeat(ghosts)
        bias = None if (beta := self.beta) is None else beta.repeat(ghosts)
        mean, var = stats.flatten(1).unbind()
        y = F.batch_norm(wide, mean, var, weight, bias, True, 1.0, self.eps)
        return y.view(length, ghosts, self.channels, *rest).transpose(0, 1).reshape(x.shape)

    def _explicit(self, part: Tensor, stats: Tensor) -> Tensor:
        mean, var = moments(part, batch_axes(part))
        count = count_per_channel(part)
        stats[0] = mean.detach().flatten()
        stats[1] = var.detach().flatten() * (count / (count - 1))
        return normalize(part, mean, var, self.gamma, self.beta, self.eps, self.eps_outside)

    def _track(self, stats: Tensor, counts: Sequence[int]) -> None:
        means, variances = stats.unbind()
        if self.sequential:
            for mean, var in zip(means.unbind(), variances.unbind(), strict=True):
                self.update(mean, var)
        else:
            self.update(*pooled(means, variances, counts))


def pooled(means: Tensor, variances: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of the whole batch from those of its ghosts, (G, C) each, of `counts` values.

    Sum of squares within the ghosts plus between their means, over n - 1: no difference of large numbers. Only the last
    ghost can differ in size, so plain sums and one correction do; torch.var over a few rows would cost as much as the
    normalization of a small layer.
    """
    first, last, total = counts[0], counts[-1], sum(counts)
    mean = _weighted_sum(means, first, last).div_(total)
    between = _weighted_sum((means - mean).square_(), first, last)
    return mean, _weighted_sum(variances, first - 1, last - 1).add_(between).div_(total - 1)


def _weighted_sum(rows: Tensor, weight: int, last_weight: int) -> Tensor:
    """Return the sum over rows, each times `weight`, the last times `last_weight`."""
    weighted = rows.sum(0).mul_(weight)
    return weighted if last_weight == weight else weighted.add_(rows[-1], alpha=last_weight - weight)
