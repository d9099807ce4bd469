"""Logits of the same weights on the same samples in two ways, held together: as in training and as in evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.compare.statistics import wilson_interval
from bnlab.interval import Interval, tell_nothing

BINS = 15  # of confidence, as in Guo et al. (2017)


@dataclass(frozen=True)
class Gap:
    """Logits of shape (K or 1, N, classes) or (N, classes) in two ways; equal logits have 0 everywhere.

    All but `logit_rms` are of each sample, float64 of the leading shape; differences are first minus second.
    """

    first: Tensor  # with statistics of training, where that is what is compared
    second: Tensor
    labels: Tensor  # (N,)

    @property
    def hits(self) -> Tensor:
        """Difference of 1 where the prediction is right and 0 elsewhere."""
        return right(self.first, self.labels) - right(self.second, self.labels)

    @property
    def losses(self) -> Tensor:
        """Difference of cross-entropy in nats."""
        return nats(self.first, self.labels) - nats(self.second, self.labels)

    @property
    def flips(self) -> Tensor:
        """1 where the predicted class changes; NaN where a logit is NaN."""
        changed = (self.first.argmax(-1) != self.second.argmax(-1)).double()
        return changed.masked_fill((self.first.isnan() | self.second.isnan()).any(-1), math.nan)

    @property
    def flip_rate(self) -> Interval:
        """The share of `flips`; of equal logits exactly 0."""
        return (
            mean_of(self.flips) if torch.equal(self.first, self.second.expand_as(self.first)) else share_of(self.flips)
        )

    @property
    def kl(self) -> Tensor:
        """KL(softmax(first) || softmax(second)) in nats."""
        p, q = self.first.double().log_softmax(-1), self.second.double().log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)

    @property
    def logit_rms(self) -> float:
        """RMS of the logit difference over RMS of the second logits."""
        return over_rms((self.first.double() - self.second.double()).square().mean().sqrt(), self.second)


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats and the share of samples classified rightly."""

    loss: float
    accuracy: float
    samples: int


@torch.no_grad()
def logits_of(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the logits (N, classes) in float32 and the labels (N,), on the device, without waiting for it."""
    outputs, labels = [], []
    for images, batch_labels in batches:
        outputs.append(model(images).float())
        labels.append(batch_labels)
    return torch.cat(outputs), torch.cat(labels)


def score(logits: Tensor, labels: Tensor) -> Score:
    """Return loss and accuracy; the sums run in float64, so that they do not depend on how samples were batched."""
    loss = F.cross_entropy(logits.double(), labels).item()
    return Score(loss, right(logits, labels).mean().item(), len(labels))


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where a sample is classified rightly and 0 elsewhere, float64 of the leading shape of `logits`.

    NaN where a logit is NaN: that predicts nothing.
    """
    return (logits.argmax(-1) == labels).double().masked_fill(logits.isnan().any(-1), math.nan)


def nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each sample's cross-entropy in nats, float64 of the leading shape of `logits`."""
    return -logits.double().log_softmax(-1).gather(-1, labels.expand(logits.shape[:-1])[..., None])[..., 0]


def over_rms(value: Tensor, logits: Tensor) -> float:
    """Return `value` over the RMS of the logits, also where both are 0: no difference."""
    return (value / logits.double().square().mean().sqrt()).item() if value != 0 else 0.0


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error, sum over bins of (samples in it / N) |accuracy - mean confidence|.

    Confidence is the top probability, its bins (a, b] are 15 of equal width (Guo et al., "On calibration of modern
    neural networks", 2017). `logits` have shape (N, classes).
    """
    confidence = logits.double().softmax(1).amax(1)
    surplus = right(logits, labels) - confidence
    bins = (confidence * BINS).ceil().long().clamp_(1, BINS) - 1
    by_bin = F.one_hot(bins, BINS).double().T @ surplus  # a scattered sum would depend on its order on CUDA
    return by_bin.abs().sum().item() / len(labels)


def mean_of(values: Tensor) -> Interval:
    """Return the mean of `values`, shape (N,), or (K, N) for N samples in K draws of batches, with its interval.

    Variance of the mean = Var over samples of their means / N + Var over draws of their means / K, the first for other
    samples, the second for other batches; Student's t with the degrees of freedom of Welch and Satterthwaite. It errs
    on the wide side: what a draw does to single samples is in both. Values that are all equal have a width of 0, and
    where they are few none.
    """
    table = values.detach().double().reshape(-1, values.shape[-1])
    draws, samples = table.shape
    mean = float(table.mean())
    if samples < 2 or not table.isfinite().all():  # a loss that is not finite
        return Interval(mean, None, None, samples)
    if (table == table[0, 0]).all():  # a mean and a variance of them would be off by rounding
        value = float(table[0, 0])
        bound = None if tell_nothing(samples) else value
        return Interval(value, bound, bound, samples)
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


def share_of(values: Tensor) -> Interval:
    """Return the mean of `values` of 0 and 1, of the shapes of `mean_of`, with Wilson's interval for N samples.

    Student's t of a share near 0 or 1 is too narrow: with 320 samples of which 99.7 % are right it contains the truth
    in 62 % of cases and has no width in 38. Where draws differ it is no narrower than the interval of `mean_of`.
    """
    found = mean_of(values)
    if found.n < 2 or not math.isfinite(found.value):
        return found
    low, high = wilson_interval(found.value, found.n)
    if values.dim() > 1 and (values != values[0]).any() and found.low is not None and found.high is not None:
        low, high = max(0.0, min(low, found.low)), min(1.0, max(high, found.high))
    return replace(found, low=min(low, found.value), high=max(high, found.value))


def _t975(freedom: float) -> float:
    from scipy.special import stdtrit  # here, for its import takes a quarter of a second

    return float(stdtrit(freedom, 0.975))
