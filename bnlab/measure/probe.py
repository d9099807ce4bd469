"""Everything that tells training mode from evaluation mode, measured on one model that is left as it was."""

from __future__ import annotations

from dataclasses import dataclass

from bnlab.measure.by_layer import LayerGap
from bnlab.measure.decomposition import Decomposition
from bnlab.measure.interval import Interval

CURVE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
AGREEMENT_SIZES = (1, 2, 7, 64)


@dataclass(frozen=True)
class SplitGap:
    """Statistics of training against those of evaluation on one split; dropout and augmentation are off in both.

    accuracy and loss gap: training minus evaluation. kl: mean KL(training || evaluation) in nats. logit_rms: RMS of the
    logit difference over RMS of the evaluation logits. mate_noise: mean over samples of the standard deviation of their
    logits over draws of batch mates, over the RMS of the logits; None: too few samples for two batches.
    """

    split: str
    samples: int
    train_accuracy: Interval
    eval_accuracy: Interval
    acc_gap: Interval
    loss_gap: Interval
    flip_rate: Interval
    kl: Interval
    logit_rms: float
    mate_noise: float | None


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and loss of the test probe, evaluated in one way."""

    name: str  # "running", "precise", "population", or "batch of 16"
    batch_size: int | None  # of the batch whose own statistics were taken; None: stored statistics
    samples: int
    accuracy: Interval
    loss: Interval


@dataclass(frozen=True)
class Agreement:
    """Evaluation mode in batches of one size against all samples at once."""

    batch_size: int
    largest: float  # difference of a logit, over the RMS of the logits
    flips: float  # share of predictions that change


@dataclass(frozen=True)
class Probing:
    """What `bnlab probe` prints, from first to last."""

    gaps: tuple[SplitGap, ...]  # train, test
    decompositions: tuple[Decomposition, ...]  # train, test
    layers: tuple[LayerGap, ...]  # by depth
    curve: tuple[Evaluation, ...]
    agreement: tuple[Agreement, ...]
    statistics_samples: int  # training samples that the population statistics are over
