"""A mean over probe samples with its 95% interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval; no interval (None) where one sample leaves nothing to estimate it from."""

    value: float
    low: float | None
    high: float | None
    n: int  # samples

    @property
    def excludes_zero(self) -> bool:
        """Whether the value can be told from 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_of(values: Tensor) -> Interval:
    """Return the mean of `values`, shape (N,), or (K, N) for N samples in K draws of batches, with its interval.

    Variance of the mean = Var over samples of their means / N + Var over draws of their means / K, the first for other
    samples, the second for other batches; Student's t with the degrees of freedom of Welch and Satterthwaite. It errs
    on the wide side: what a draw does to single samples is in both. Values that are all equal have a width of 0.
    """
    table = values.detach().double().reshape(-1, values.shape[-1])
    draws, samples = table.shape
    mean = float(table.mean())
    if samples < 2 or not table.isfinite().all():  # a loss that is not finite
        return Interval(mean, None, None, samples)
    if (table == table[0, 0]).all():  # a mean and a variance of them would be off by rounding
        return exactly(float(table[0, 0]), samples)
    per_sample, per_draw = table.mean(0), table.mean(1)
    parts = [(float(per_sample.var()) / samples, samples - 1)]
    if draws > 1:
        parts.append((float(per_draw.var()) / draws, draws - 1))
    variance = sum(part for part, _ in parts)
    if not 0 < variance < math.inf:  # beyond what float64 holds
        return Interval(mean, mean, mean, samples) if variance == 0 else Interval(mean, None, None, samples)
    freedom = 1 / sum((part / variance) ** 2 / degrees for part, degrees in parts)
    half = _t975(freedom) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, samples)


def _t975(freedom: float) -> float:
    from scipy.special import stdtrit  # here, for its import takes a quarter of a second

    return float(stdtrit(freedom, 0.975))


def exactly(value: float, n: int) -> Interval:
    """Return a value that is no estimate, such as a term that cannot occur."""
    return Interval(value, value, value, n)


def share_of(hits: Tensor) -> Interval:
    """Return the share of true values in `hits`, bool of shape (N,) or (K, N), with its interval."""
    return mean_of(hits.to(torch.float64))
