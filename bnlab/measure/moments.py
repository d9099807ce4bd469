"""Mean and variance of a channel from chunks that come one after the other, without a difference of large numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from bnlab.norms.formula import batch_axes, count_per_channel


class Moments:
    """Count, mean and sum of squared deviations M2, per channel, of all chunks added so far.

    Two sets merge as n = n_a + n_b, d = mean_b - mean_a, mean = mean_a + d n_b/n, M2 = M2_a + M2_b + d^2 n_a n_b/n
    (Chan, Golub and LeVeque, "Updating formulae", 1979), here in float64. Nothing waits for the device.
    """

    def __init__(self) -> None:
        self.count = 0  # values a channel
        self._mean: Tensor | None = None
        self._m2: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add a chunk of shape (N, C) or (N, C, H, W)."""
        count = count_per_channel(x)
        mean, var = chunk_moments(x)
        m2 = var * count
        if self._mean is None or self._m2 is None:
            self.count, self._mean, self._m2 = count, mean, m2
            return
        total = self.count + count
        difference = mean - self._mean
        self._mean = self._mean + difference * (count / total)
        self._m2 = self._m2 + m2 + difference.square() * (self.count * (count / total))
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance, float64 of shape (C,). Errors: ValueError before the first chunk."""
        if self._mean is None or self._m2 is None:
            raise ValueError("no values were added\nadd at least one chunk")
        return self._mean, self._m2 / self.count


class InstanceMoments:
    """Mean over samples of each sample's mean and unbiased variance over H, W, which instance norm's averages estimate.

    A sample with a single pixel has variance 0.
    """

    def __init__(self) -> None:
        self.count = 0  # samples
        self._sums: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add a chunk of shape (N, C, H, W), or with another number of axes of space."""
        wide = x.detach().flatten(2).double()
        var, mean = torch.var_mean(wide, 2, correction=1 if wide.shape[2] > 1 else 0)
        sums = torch.stack([mean.sum(0), var.sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums
        self.count += len(x)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance, float64 of shape (C,). Errors: ValueError before the first chunk."""
        if self._sums is None:
            raise ValueError("no values were added\nadd at least one chunk")
        mean, var = (self._sums / self.count).unbind()
        return mean, var


def chunk_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of one chunk per channel, float64 of shape (C,).

    In two passes, the second about the rounded mean of the first and corrected for what that mean was off (Chan, Golub
    and LeVeque, 1983). A chunk of 200 x 32 x 28 x 28 took 5.4 ms in channels_last and 6.4 ms contiguous on one CPU
    core; `var_mean` took 34 ms. Batch norm's own statistics (3 and 10 ms) add up a channel's float32 values one after
    the other in channels_last: at an offset of 1e4 standard deviations their mean was off by 11 of them, here by 1e-9.
    """
    dims = batch_axes(x)
    x = x.detach()
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    about = wide.mean(dims, keepdim=True)
    centred = wide - about
    off = centred.mean(dims).double()
    var = centred.square_().mean(dims).double() - off.square()
    return about.flatten().double() + off, var.clamp_(min=0.0)
