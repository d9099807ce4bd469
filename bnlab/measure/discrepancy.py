"""The same weights on the same samples, normalized as in training and as in evaluation; the model is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats and the share of samples classified rightly."""

    loss: float
    accuracy: float
    samples: int


@dataclass(frozen=True)
class Gap:
    """Statistics of training minus statistics of evaluation, same samples and weights."""

    acc_gap: float
    loss_gap: float
    flip_rate: float  # share of samples whose predicted class changes between the two
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
    flips = (trained.argmax(1) != evaluated.argmax(1)).double().mean().item()
    return Gap(train.accuracy - evaluation.accuracy, train.loss - evaluation.loss, flips, len(labels))
