"""Logits of the same weights on the same samples, normalized as in training and as in evaluation, held together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.measure.decomposition import divergence

BINS = 15  # of confidence, as in Guo et al. (2017)


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats and the share of samples classified rightly."""

    loss: float
    accuracy: float
    samples: int


@dataclass(frozen=True)
class Gap:
    """Statistics of training against those of evaluation, same samples and weights; equal logits have 0 everywhere.

    The gaps are training minus evaluation.
    """

    acc_gap: float
    loss_gap: float  # nats
    flip_rate: float  # share of samples whose predicted class changes between the two
    kl: float  # mean KL(p_train || p_eval) in nats
    logit_rms: float  # RMS of the logit difference over RMS of the logits in evaluation
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
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return Score(loss, accuracy, len(labels))


def gap(trained: Tensor, evaluated: Tensor, labels: Tensor) -> Gap:
    """Compare logits under training statistics with those under evaluation statistics, both (N, classes)."""
    train, evaluation = score(trained, labels), score(evaluated, labels)
    difference = (trained.double() - evaluated.double()).square().mean().sqrt()
    size = evaluated.double().square().mean().sqrt()
    return Gap(
        acc_gap=train.accuracy - evaluation.accuracy,
        loss_gap=train.loss - evaluation.loss,
        flip_rate=(trained.argmax(1) != evaluated.argmax(1)).double().mean().item(),
        kl=divergence(trained, evaluated).mean().item(),
        logit_rms=(difference / size).item() if difference != 0 else 0.0,
        samples=len(labels),
    )


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Return the expected calibration error, sum over bins of (samples in it / N) |accuracy - mean confidence|.

    Confidence is the top probability, its bins (a, b] are 15 of equal width (Guo et al., "On calibration of modern
    neural networks", 2017). `logits` have shape (N, classes).
    """
    confidence = logits.double().softmax(1).amax(1)
    surplus = (logits.argmax(1) == labels).double() - confidence
    bins = (confidence * BINS).ceil().long().clamp_(1, BINS) - 1
    by_bin = F.one_hot(bins, BINS).double().T @ surplus  # a scattered sum would depend on its order on CUDA
    return by_bin.abs().sum().item() / len(labels)
