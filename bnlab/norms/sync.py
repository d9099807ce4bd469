"""Batch normalization over all workers of a data-parallel training.

Each worker has a part of the batch, of any size. The parts' (count, mean, variance) travel in one all_gather and are
merged by Chan's formula, never through sums of squares, which lose a large offset; on the way back, two sums a channel
travel in one all_reduce. Several workers always have several values a channel, as none has an empty part: the batch
policy matters to one worker alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from bnlab.distributed import group_size
from bnlab.norms.derivatives import refuse_transforms, through_formula
from bnlab.norms.formula import batch_axes, count_per_channel, moments, normalize, per_channel
from bnlab.norms.running import RunningLayer, momentum_param
from bnlab.norms.strategy import OF_THE_BATCH, InitialShare, NormLayer, OverSamples, share_left, strategies


@strategies.register("sync")
@dataclass(frozen=True, kw_only=True)
class Sync(OverSamples):
    """Normalize each channel over the batch (and H, W) of all workers; with one worker it is `batch`.

    y = gamma * (x - E[x]) / sqrt(Var[x] + eps) + beta, Var biased (1/n), over axes N (and H, W) of all parts of the
    batch per channel; the parts may differ in size. With counts n_w, n = sum n_w, means m_w and variances v_w of the
    parts: E[x] = m_0 + sum n_w (m_w - m_0) / n, Var[x] = sum n_w (v_w + (m_w - E[x])^2) / n. The gradient of a worker's
    input is that of the sum of all workers' losses; gamma and beta get the gradient of its own part, for the trainer to
    average. Running averages as `batch`: new = (1 - momentum) * old + momentum * batch, with the unbiased variance of
    the whole batch, the same on all workers; `momentum=null` averages all steps alike.

    Ioffe and Szegedy, "Batch Normalization", 2015; merging: Chan, Golub and LeVeque, 1979; over workers: Peng et al.,
    "MegDet", 2018. Defaults as torch.nn.SyncBatchNorm: eps 1e-5, momentum 0.1, affine.
    """

    momentum: float | None = momentum_param()

    facts = replace(OF_THE_BATCH, spans_workers=True)

    def layer(self, channels: int) -> NormLayer:
        return SyncLayer(channels, self)

    def initial_share(self, steps: int, batch_size: int) -> InitialShare | None:
        return share_left(self.momentum, steps, updates_per_step=1)


class SyncLayer(RunningLayer):
    """torch's kernels for statistics, output and gradient; only numbers a channel travel between the workers."""

    def __init__(self, channels: int, strategy: Sync) -> None:
        super().__init__(channels, strategy, strategy.momentum)

    def normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.with_running(x)
        if group_size() > 1:
            return self._over_workers(x)
        if count_per_channel(x) == 1:
            self.num_unnormalizable += 1
            return self.with_running(x)
        return self.on_whole_batch(x)

    def _over_workers(self, x: Tensor) -> Tensor:
        refuse_transforms("sync", "several workers take part in it")
        if self.eps_outside:
            mean, var, total = all_moments(x)
            self._track(mean.detach(), var.detach(), total)
            return normalize(x, per_channel(mean, x), per_channel(var, x), self.gamma, self.beta, self.eps, True)
        with torch.no_grad():
            unused = self.empty_stats(1).view(2, -1).unbind()  # their dtype makes that of the statistics
            parts = torch.cat(torch.ops.aten.batch_norm_update_stats(x, *unused, 1.0))
            mean, var, total = merged(gathered(with_count(parts, x)))
            self._track(mean, var, total)
        y: Tensor = SyncNorm.apply(x, mean, var, total, self.gamma, self.beta, self.eps)
        return y

    def _track(self, mean: Tensor, var: Tensor, total: Tensor) -> None:
        self.update(mean, var * (total / (total - 1)))


def with_count(parts: Tensor, x: Tensor) -> Tensor:
    """Return mean, variance and count of one worker's part as one row, of shape (2C + 1,)."""
    return torch.cat([parts, parts.new_full((1,), count_per_channel(x))])


def gathered(row: Tensor) -> Tensor:
    """Return the rows of all workers, of shape (W, 2C + 1), the same bits on each."""
    rows = row.new_empty(group_size(), len(row))
    dist.all_gather_into_tensor(rows.view(-1), row)
    return rows


def merged(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,), biased variance (C,) and count, a scalar, of the whole batch from its parts (W, 2C + 1)."""
    means, variances = rows[:, :-1].chunk(2, dim=1)
    counts = rows[:, -1:].detach()
    total = counts.sum()
    shares = counts / total
    mean = means[0] + (shares * (means - means[0])).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return mean, var, total


def all_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, biased variance and count of the whole batch, with the gradient through all parts."""
    parts = torch.cat([statistic.flatten() for statistic in moments(x, batch_axes(x))])
    return merged(Gather.apply(with_count(parts, x)))


def sync_formula(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return what `SyncNorm` does."""
    mean, var, _ = all_moments(x)
    return normalize(x, per_channel(mean, x), per_channel(var, x), weight, bias, eps, False)


class Gather(torch.autograd.Function):
    """`gathered` with its gradient: each worker's row gets the sum of what all workers' losses want of it."""

    @staticmethod
    def forward(ctx: Any, row: Tensor) -> Tensor:
        return gathered(row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        row: Tensor = ScatterSum.apply(grad)
        return row


class ScatterSum(torch.autograd.Function):
    """The gradient of `Gather`, and the other way round: the sum over all workers of this worker's row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(rows)
        return rows[dist.get_rank()].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rows: Tensor = Gather.apply(grad)
        return rows


class SyncNorm(torch.autograd.Function):
    """Normalize by the statistics of the whole batch, with the gradient through them, in torch's fused kernels.

    With r = 1/sqrt(var + eps), xhat = (x - mean) * r, n values a channel in all, an incoming gradient g and S the sum
    over the parts of all workers: dx = gamma * r * (g - (S g + xhat * S(g * xhat)) / n). dgamma = sum g * xhat and
    dbeta = sum g are those of this worker's part.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        total: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, var, total, weight, bias)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, total, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx, dgamma, dbeta = through_formula(partial(sync_formula, eps=ctx.eps), grad, x, weight, bias)
            return dx, None, None, None, dgamma, dbeta, None
        gamma = torch.ones_like(mean) if weight is None else weight
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            grad, x, gamma, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([dgamma, dbeta])
        dist.all_reduce(sums)
        scale, shift = sums * (gamma * torch.rsqrt(var + ctx.eps) / total)
        dx.sub_(F.batch_norm(x, mean, var, scale, shift, False, 0.0, ctx.eps))
        if weight is None:
            return dx, None, None, None, None, None, None
        return dx, None, None, None, dgamma, dbeta, None
