"""Everything that tells training mode from evaluation mode, measured on one model that is left as it was."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.interval import Interval
from bnlab.measure.by_layer import LayerGap, layer_gaps
from bnlab.measure.decomposition import Decomposition, Stages, decompose, levels, stages
from bnlab.measure.discrepancy import Gap, mean_of, nats, over_rms, right
from bnlab.measure.layer_statistics import Statistics
from bnlab.measure.modes import evaluating, learners, preserved
from bnlab.measure.population_statistics import adopted, mixed_with_batch, plan, precise
from bnlab.measure.probe_batches import Probe, mate_noise
from bnlab.measure.refresh import refreshed

CURVE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CURVE_BATCHES = 512  # at most, of each size: single samples are slow
AGREEMENT_SIZES = (1, 2, 7, 64)
AGREEMENT_SAMPLES = 128  # evaluated all at once


@dataclass(frozen=True)
class SplitGap:
    """Statistics of training against those of evaluation on one split; dropout and augmentation are off in both.

    accuracy and loss gap: training minus evaluation. kl: mean KL(training || evaluation) in nats. logit_rms: RMS of the
    logit difference over RMS of the evaluation logits. mate_noise: mean over samples of the standard deviation of their
    logits over draws of batch-mates, over the RMS of the logits; None: too few samples for two batches.
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
class ProbeResult:
    """What `bnlab probe` prints, from first to last."""

    gaps: tuple[SplitGap, ...]  # train, test
    decompositions: tuple[Decomposition, ...]  # train, test
    layers: tuple[LayerGap, ...]  # by depth
    curve: tuple[Evaluation, ...]
    agreement: tuple[Agreement, ...]
    statistics_samples: int  # training samples that the population statistics are over


def probe(model: nn.Module, probes: Sequence[Probe], training_set: Batches, samples: int) -> ProbeResult:
    """Measure `model` on `probes`, the last of which is the test split's; the model is left as it was.

    The statistics of the training set are over its first `samples`. Errors: IncompatibleError when a layer with
    statistics is called more than once in a forward pass.
    """
    with torch.no_grad(), preserved(model), evaluating(model):
        layers = learners(model)
        samples = min(samples, len(training_set))
        how = plan(model, dict.fromkeys(layers, samples), training_set)
        batch, _ = next(probes[0].plain.sequential(probes[0].batch_size))
        fresh = refreshed(model, training_set)
        at = levels(model, how, batch, fresh)
        staged = [stages(model, probe, at) for probe in probes]
        test = probes[-1]
        with adopted(model, fresh):
            curve = _curve(model, test, staged[-1], layers, training_set, samples) if layers else ()
            agreement = _agreement(model, test)
        return ProbeResult(
            tuple(map(_split_gap, probes, staged)),
            tuple(decompose(model, probe, each) for probe, each in zip(probes, staged, strict=True)),
            tuple(layer_gaps(model, at.population)),
            curve,
            agreement,
            samples,
        )


def _split_gap(probe: Probe, staged: Stages) -> SplitGap:
    training, evaluation = staged.undropped, staged.running
    gap = Gap(training, evaluation, probe.labels)
    return SplitGap(
        split=probe.split,
        samples=len(probe),
        train_accuracy=mean_of(right(training, probe.labels)),
        eval_accuracy=mean_of(right(evaluation, probe.labels)),
        acc_gap=mean_of(gap.hits),
        loss_gap=mean_of(gap.losses),
        flip_rate=mean_of(gap.flips),
        kl=mean_of(gap.kl),
        logit_rms=gap.logit_rms,
        mate_noise=mate_noise(training, evaluation) if len(probe) >= 2 * probe.batch_size else None,
    )


def _curve(
    model: nn.Module,
    test: Probe,
    staged: Stages,
    layers: Sequence[nn.Module],
    training_set: Batches,
    samples: int,
) -> tuple[Evaluation, ...]:
    """Evaluate with the batch's own statistics at every size, beside stored ones."""
    one_pass = precise(model, _first(training_set, samples, test.batch_size))
    own: Statistics = {layer: one_pass[layer] for layer in layers if layer in one_pass}
    with adopted(model, own):
        at_precise = _logits(model, test.plain, len(test), test.batch_size)
    rows = [
        _evaluation("running", None, staged.running[0], test.labels),
        _evaluation("precise", None, at_precise, test.labels),
        _evaluation("population", None, staged.population[0], test.labels),
    ]
    for size in CURVE_SIZES:
        if (whole := min(len(test) // size, CURVE_BATCHES) * size) > 0:
            with mixed_with_batch(model, 0.0, layers):
                logits = _logits(model, test.plain, whole, size)
            rows.append(_evaluation(f"batch of {size}", size, logits, test.labels))
    return tuple(rows)


def _evaluation(name: str, size: int | None, logits: Tensor, labels: Tensor) -> Evaluation:
    labels = labels[: len(logits)]
    accuracy, loss = mean_of(right(logits, labels)), mean_of(nats(logits, labels))
    return Evaluation(name, size, len(logits), accuracy, loss)


def _agreement(model: nn.Module, test: Probe) -> tuple[Agreement, ...]:
    samples = min(AGREEMENT_SAMPLES, len(test))
    whole = _logits(model, test.plain, samples, samples)
    rows = []
    for size in AGREEMENT_SIZES:
        if size < samples:
            logits = _logits(model, test.plain, samples, size)
            flips = Gap(logits, whole, test.labels[:samples]).flips.mean().item()
            rows.append(Agreement(size, over_rms((logits - whole).abs().max().double(), whole), flips))
    return tuple(rows)


def _logits(model: nn.Module, batches: Batches, samples: int, size: int) -> Tensor:
    """Return the logits of the first `samples` in batches of `size`."""
    return torch.cat([model(images).float() for images, _ in batches.in_order(torch.arange(samples), size)])


def _first(batches: Batches, samples: int, size: int) -> list[tuple[Tensor, Tensor]]:
    size = min(size, samples)
    return list(itertools.islice(batches.sequential(size), samples // size))
