"""Everything that tells training mode from evaluation mode, measured on one model that is left as it was."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.errors import IncompatibleError
from bnlab.interval import Interval
from bnlab.measure.by_layer import LayerGap, layer_gaps
from bnlab.measure.decomposition import Decomposition, Levels, Stages, decompose, levels, stages
from bnlab.measure.discrepancy import Gap, mean_of, nats, over_rms, right, share_of
from bnlab.measure.layer_statistics import (
    Statistics,
    gatherer,
    keeps_statistics,
    kept,
    normalizations,
    running_layers,
)
from bnlab.measure.modes import evaluating, learners, preserved, seeded
from bnlab.measure.moments import InstanceMoments, Moments
from bnlab.measure.population_statistics import StatisticsPlan, adopted, hooked, mixed_with_batch, plan, precise
from bnlab.measure.probe_batches import Probe, mate_noise
from bnlab.measure.recalibration import Change, change_of
from bnlab.measure.refresh import refreshed
from bnlab.measure.unseen import differ
from bnlab.norms.running import RunningLayer

CURVE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CURVE_BATCHES = 512  # at most, of each size: single samples are slow
AGREEMENT_SIZES = (1, 2, 7, 64)
AGREEMENT_SAMPLES = 512  # evaluated all at once; single samples are slow: 2,048 took a ResNet half a minute
FROZEN_BATCH = 64  # images at a time, for the inputs of layers that training leaves frozen


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

    name: str  # "running", "precise", "population", "population plain" or "batch of 16"
    batch_size: int | None  # of the batch whose own statistics were taken; None: stored statistics
    samples: int
    accuracy: Interval
    loss: Interval


@dataclass(frozen=True)
class Agreement:
    """Evaluation mode in batches of one size against all samples at once."""

    batch_size: int
    largest: float  # difference of a logit, over the RMS of the logits; nan: the batch cannot be evaluated
    flips: float  # share of predictions that change


@dataclass(frozen=True)
class Remedy:
    """Other statistics for evaluation, and what they change on the test probe, which they are not taken from."""

    name: str  # options of bnlab recalibrate, or OWN_STATISTICS
    change: Change


OWN_STATISTICS = "track_running_stats=False"  # of torch's instance norm: evaluation takes each sample's own too


@dataclass(frozen=True)
class ProbeResult:
    """What `bnlab probe` prints, from first to last."""

    gaps: tuple[SplitGap, ...]  # train, test
    decompositions: tuple[Decomposition, ...]  # train, test
    layers: tuple[LayerGap, ...]  # by depth
    curve: tuple[Evaluation, ...]
    agreement: tuple[Agreement, ...]
    statistics_samples: int  # training samples that the population statistics are over
    remedies: tuple[Remedy, ...] = ()  # recalibration first
    not_sound: tuple[str, ...] = ()  # layers whose running statistics are not finite, or a variance below 0
    undefined: str | None = None  # why there are no population statistics
    momenta: tuple[float, ...] = ()  # of the layers that average, ascending, each once
    again: float = 0.0  # share of predictions that change where the same images are evaluated once more


def probe(
    model: nn.Module,
    probes: Sequence[Probe],
    training_set: Batches,
    samples: int,
    watch: Callable[[float], None] = lambda share: None,
    unread: str = "",
) -> ProbeResult:
    """Measure `model` on `probes`, the last of which is the test split's; the model is left as it was.

    The statistics of the training set are over its first `samples`, as training sees them. Where a layer is called
    more than once with the same samples, they are not defined, and neither are the terms that need them. Where they
    take a pass a layer, `watch` is told how much of these is done, from 0 to 1: it is most of the time. `unread` names
    layers that keep something in training that is not read: without others, training's statistics are not defined.
    """
    with torch.no_grad(), preserved(model), evaluating(model):
        layers = learners(model)
        samples = min(samples, len(training_set))
        how: StatisticsPlan | str
        try:
            how = replace(plan(model, dict.fromkeys(layers, samples), training_set), watch=watch)
        except IncompatibleError as error:
            how = str(error).partition("\n")[0]
        batch, _ = next(probes[0].plain.sequential(probes[0].batch_size))
        fresh = refreshed(model, training_set)
        at = levels(model, how, batch, fresh)
        staged = [stages(model, probe, at) for probe in probes]
        test = probes[-1]
        one_pass = precise(model, _first(training_set, samples, test.batch_size)) if layers else {}
        one_pass = {layer: one_pass[layer] for layer in layers if layer in one_pass}
        staged_probes = list(zip(probes, staged, strict=True))
        decompositions = tuple(decompose(model, probe, each, at, unread) for probe, each in staged_probes)
        with adopted(model, fresh):
            ways = _stored_ways(model, test, staged[-1], at, one_pass)
            # functions that read a layer's buffers do not take the batch's own statistics in its place
            curve = _curve(model, test, ways, layers) if _called(model, layers, batch) else ()
            agreement, again = _agreement(model, test)
            remedies = list(_remedies(test, ways, at))
            if layers and not decompositions[-1].reads_batch:
                remedies.extend(_own_statistics(model, test, ways, layers))
            reference = one_pass if at.population is None else at.population
            frozen = _frozen(model, training_set, samples, reference)
        return ProbeResult(
            tuple(_split_gap(probe, each, bool(layers) or not unread) for probe, each in staged_probes),
            decompositions,
            tuple(layer_gaps(model, frozen or reference, frozen.keys() - reference.keys())),
            curve,
            agreement,
            samples,
            tuple(remedies),
            tuple(name for name, layer in normalizations(model).items() if not _is_sound(layer)),
            at.undefined,
            tuple(sorted({m for layer in layers if isinstance(m := getattr(layer, "momentum", None), float)})),
            again,
        )


def _called(model: nn.Module, layers: Sequence[nn.Module], images: Tensor) -> bool:
    called: list[nn.Module] = []
    with hooked(layers, lambda layer, x: called.append(layer)):
        model(images)
    return bool(called)


def _is_sound(layer: nn.Module) -> bool:
    if not keeps_statistics(layer):
        return True
    mean, var = kept(layer)
    return bool(mean.isfinite().all() and var.isfinite().all() and (var >= 0).all())


def _frozen(model: nn.Module, training_set: Batches, samples: int, taken: Statistics) -> Statistics:
    """Return `taken` and the statistics of the inputs of the layers that training leaves frozen, by execution.

    Without such layers nothing; bnlab's own are not among them: what they hold is put into them.
    """
    averaging = learners(model)
    frozen = [each for each in running_layers(model) if each not in averaging and not isinstance(each, RunningLayer)]
    gathered: dict[nn.Module, Moments | InstanceMoments] = {}

    def gather(layer: nn.Module, x: Tensor) -> None:
        gathered.setdefault(layer, gatherer(layer)).add(x)

    with adopted(model, taken), hooked([*taken, *frozen], gather):
        for images, _ in _first(training_set, samples, FROZEN_BATCH) if frozen else ():
            model(images)
    return {layer: taken.get(layer) or moments.result() for layer, moments in gathered.items()}


def _split_gap(probe: Probe, staged: Stages, is_read: bool) -> SplitGap:
    training, evaluation = staged.norms, staged.evaluation
    if not is_read:
        training = torch.full_like(training, math.nan)
    noise = mate_noise(training, evaluation) if is_read else math.nan
    gap = Gap(training, evaluation, probe.labels)
    return SplitGap(
        split=probe.split,
        samples=len(probe),
        train_accuracy=share_of(right(training, probe.labels)),
        eval_accuracy=share_of(right(evaluation, probe.labels)),
        acc_gap=mean_of(gap.hits),
        loss_gap=mean_of(gap.losses),
        flip_rate=gap.flip_rate,
        kl=mean_of(gap.kl),
        logit_rms=gap.logit_rms,
        mate_noise=noise if len(probe) >= 2 * probe.batch_size else None,
    )


def _stored_ways(model: nn.Module, test: Probe, staged: Stages, at: Levels, one_pass: Statistics) -> dict[str, Tensor]:
    """Return the logits of the test probe, plain and in evaluation mode, by the statistics that are put in."""
    ways = {"running": staged.evaluation[0]}
    for name, statistics in (("precise", one_pass), ("population", at.population), ("population plain", at.plain)):
        if statistics:
            with adopted(model, statistics):
                ways[name] = _logits(model, test.plain, len(test), test.batch_size)
    return ways


def _remedies(test: Probe, ways: Mapping[str, Tensor], at: Levels) -> Iterator[Remedy]:
    """Yield what `bnlab recalibrate` would come to, by its options."""
    for options, way in (("", "population"), ("--plain", "population plain"), ("--stats precise", "precise")):
        if way in ways and (way != "precise" or at.population is None):
            yield Remedy(options, change_of(test.split, ways["running"], ways[way], test.labels))


def _own_statistics(
    model: nn.Module, test: Probe, ways: Mapping[str, Tensor], layers: Sequence[nn.Module]
) -> Iterator[Remedy]:
    with mixed_with_batch(model, 0.0, layers):
        own = _in_batches(model, test.plain, min(len(test), CURVE_BATCHES), 1)
    if own is not None:
        change = change_of(test.split, ways["running"][: len(own)], own, test.labels[: len(own)])
        yield Remedy(OWN_STATISTICS, change)


def _curve(
    model: nn.Module, test: Probe, ways: Mapping[str, Tensor], layers: Sequence[nn.Module]
) -> tuple[Evaluation, ...]:
    """Evaluate with the batch's own statistics at every size, beside stored ones."""
    rows = [_evaluation(name, None, logits, test.labels) for name, logits in ways.items()]
    for size in CURVE_SIZES:
        if (whole := min(len(test) // size, CURVE_BATCHES) * size) > 0:
            with mixed_with_batch(model, 0.0, layers):
                logits = _in_batches(model, test.plain, whole, size)
            if logits is not None:
                rows.append(_evaluation(f"batch of {size}", size, logits, test.labels))
    return tuple(rows)


def _evaluation(name: str, size: int | None, logits: Tensor, labels: Tensor) -> Evaluation:
    labels = labels[: len(logits)]
    accuracy, loss = share_of(right(logits, labels)), mean_of(nats(logits, labels))
    return Evaluation(name, size, len(logits), accuracy, loss)


def _agreement(model: nn.Module, test: Probe) -> tuple[tuple[Agreement, ...], float]:
    """Return how other batches agree with all samples at once, and the flips where evaluation is random: then none."""
    samples = min(AGREEMENT_SAMPLES, len(test))

    def drawn(number: int) -> Tensor:
        with preserved(model):
            seeded(number)
            return _logits(model, test.plain, samples, samples)

    whole, again = drawn(0), drawn(1)
    if differ(again, whole):
        return (), Gap(again, whole, test.labels[:samples]).flips.mean().item()
    rows = []
    for size in AGREEMENT_SIZES:
        if size < samples:
            logits = _in_batches(model, test.plain, samples, size)
            if logits is None:
                rows.append(Agreement(size, math.nan, math.nan))
                continue
            flips = Gap(logits, whole, test.labels[:samples]).flips.mean().item()
            rows.append(Agreement(size, over_rms((logits - whole).abs().max().double(), whole), flips))
    return tuple(rows), 0.0


def _in_batches(model: nn.Module, batches: Batches, samples: int, size: int) -> Tensor | None:
    """Return what `_logits` does; None: the model cannot be given a single image, which is said where it is loaded."""
    try:
        return _logits(model, batches, samples, size)
    except Exception:  # whatever a model of others raises
        if size > 1 or _takes_one(model, batches):
            raise
        return None


def _takes_one(model: nn.Module, batches: Batches) -> bool:
    try:
        _logits(model, batches, 1, 1)
    except Exception:
        return False
    return True


def _logits(model: nn.Module, batches: Batches, samples: int, size: int) -> Tensor:
    """Return the logits of the first `samples` in batches of `size`."""
    return torch.cat([model(images).float() for images, _ in batches.in_order(torch.arange(samples), size)])


def _first(batches: Batches, samples: int, size: int) -> list[tuple[Tensor, Tensor]]:
    size = min(size, samples)
    return list(itertools.islice(batches.sequential(size, augmented=True), samples // size))
