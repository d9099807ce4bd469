"""Statistics of the training set in place of the running ones of a trained model, and over how many samples it takes.

Only layers that average their batches are recalibrated; all others keep what they hold, or take theirs as ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.errors import IncompatibleError
from bnlab.interval import Interval
from bnlab.measure.by_layer import LayerGap, layer_gaps
from bnlab.measure.discrepancy import Gap, logits_of, mean_of, nats, right, share_of
from bnlab.measure.layer_statistics import (
    Statistics,
    adopt,
    initial_left,
    reads_batch_in_evaluation,
    running_layers,
)
from bnlab.measure.modes import evaluating, learners, preserved, restored
from bnlab.measure.population_statistics import adopted, plan, population, precise
from bnlab.measure.refresh import refreshed
from bnlab.norms.running import RunningLayer

Stats = Literal["population", "precise"]

# "Enough" leaves differences that no choice of a model would hang on: a tenth of a point, and of the loss about a tenth
# of what a trained classifier of digits or small images has.
ENOUGH_ACCURACY = 0.001  # a share; a single sample may change where that is more
ENOUGH_LOSS = 0.005  # nats
FIRST, FACTOR = 16, 4  # samples of the curve: 16, 64, 256, ...


@dataclass(frozen=True)
class Change:
    """One split in evaluation mode before and after; the differences are after minus before, sample by sample."""

    split: str
    accuracy_before: Interval  # a share
    accuracy_after: Interval
    accuracy: Interval
    loss_before: Interval  # nats
    loss_after: Interval
    loss: Interval
    flips: Interval  # share of predictions that change

    @property
    def clear(self) -> dict[str, float]:
        """Return the gains, of accuracy and of -loss, that can be told from 0."""
        gains = {"accuracy": (self.accuracy, 1), "loss": (self.loss, -1)}
        return {name: sign * gain.value for name, (gain, sign) in gains.items() if gain.excludes(0)}

    @property
    def small(self) -> bool:
        """Whether neither accuracy nor loss changes by more than `enough` allows."""
        return _is_near(self.accuracy, self.loss)


@dataclass(frozen=True)
class SplitLevel:
    """One split with the statistics of the first so many training samples; the differences are from those of all."""

    accuracy: Interval
    loss: Interval
    accuracy_off: Interval
    loss_off: Interval


@dataclass(frozen=True)
class Point:
    """One number of training samples of the curve."""

    samples: int
    levels: Mapping[str, SplitLevel]  # by split


@dataclass(frozen=True)
class Recalibration:
    """What new statistics change, and how many samples they need."""

    stats: Stats
    samples: int  # training samples that the new statistics are over
    available: int  # training samples there are
    statistics: Statistics
    changes: tuple[Change, ...]  # in the order of the splits given
    gaps_before: tuple[LayerGap, ...]  # the old statistics against the new ones, by depth
    gaps_after: tuple[LayerGap, ...]  # the layers' own dtype against the new ones: rounding
    curve: tuple[Point, ...]  # the last with all samples
    judged_on: str  # the split that `enough` is judged on
    enough: int  # the fewest samples of the curve from which on none is worse than all by more than the above


def check_recalibratable(model: nn.Module) -> None:
    """Refuse a model without a layer that averages its batches. Errors: IncompatibleError."""
    if learners(model):
        return
    if any(isinstance(layer, RunningLayer) for layer in running_layers(model)):
        raise IncompatibleError(
            "nothing to recalibrate: no layer averages its batches; the statistics come from the training set\n"
            "leave them: norm=population has those of the final weights, norm=frozen keeps its first ones on purpose"
        )
    if running_layers(model):
        raise IncompatibleError(
            "nothing to recalibrate: training leaves all layers with statistics in evaluation mode (frozen)\n"
            "leave them: the weights were trained with these; bnlab probe shows how far they are from the data"
        )
    if reads_batch_in_evaluation(model):
        raise IncompatibleError(
            "nothing to recalibrate: no layer keeps statistics, evaluation normalizes with the batch it is given\n"
            "leave it at batches as in training, or train with track_running_stats=True; bnlab probe shows what other "
            "batches change"
        )
    raise IncompatibleError(
        "nothing to recalibrate: no layer keeps statistics of its batches for evaluation\n"
        "leave it; bnlab probe shows what else may differ"
    )


def samples_used(training_set: Batches, stats: Stats, samples: int | None, batch_size: int) -> int:
    """Return how many training samples the statistics are over: `precise` takes whole batches, at least one.

    In a shorter batch than those of training, layers before would normalize otherwise than in training.
    """
    count = len(training_set) if samples is None else min(samples, len(training_set))
    return count if stats == "population" or count < batch_size else count - count % batch_size


def recalibrated(
    model: nn.Module,
    training_set: Batches,
    stats: Stats,
    samples: int | None,
    batch_size: int,
    *,
    plain: bool = False,
) -> Statistics:
    """Return the statistics, over the first `samples` of the training set (None: all), of the layers that average.

    population: layer after layer, as of one batch of all samples. precise: in one pass with training behaviour, in
    batches of `batch_size`. The variance is the biased one (1/n). The images are as training sees them, augmented and
    with dropout; `plain`: neither. The model is left as it was. Errors:
    IncompatibleError when no layer averages its batches or, with population, one is called more than once in a forward
    pass.
    """
    check_recalibratable(model)
    count = samples_used(training_set, stats, samples, batch_size)
    layers = learners(model)
    with preserved(model), evaluating(model):
        if stats == "population":
            try:
                how = plan(model, dict.fromkeys(layers, count), training_set, plain=plain)
            except IncompatibleError as error:
                reason = str(error).partition("\n")[0]
                raise IncompatibleError(f"{reason}\nstats=precise pools all its calls") from error
            statistics = population(model, how)
        else:
            whole = min(batch_size, count)
            batches = itertools.islice(training_set.sequential(whole, augmented=not plain), count // whole)
            one_pass = precise(model, batches, plain=plain)
            statistics = {layer: one_pass[layer] for layer in layers if layer in one_pass}
    if not statistics:
        raise IncompatibleError("nothing to recalibrate: no forward pass comes to a layer that averages its batches")
    return statistics


def new_entries(model: nn.Module, statistics: Statistics) -> dict[str, Tensor]:
    """Return the entries of the model's state dict that `statistics` replace, as copies; the model stays as it is.

    The count of batches begins anew where the share of the initial statistics would be told from it: none of mean 0
    and variance 1 is left. With `momentum=None` the count is a weight of what is there, and stays.
    """
    with torch.no_grad(), restored(model):
        for layer, (mean, var) in statistics.items():
            adopt(layer, mean, var)
            if layer.momentum is not None and initial_left(layer) is not None:
                cast(Tensor, layer.num_batches_tracked).zero_()
        changed = {
            f"{name}.{key}".lstrip(".")
            for name, module in model.named_modules(remove_duplicate=False)
            if module in statistics
            for key in ("running_mean", "running_var", "num_batches_tracked")
        }
        return {name: value.cpu().clone() for name, value in model.state_dict().items() if name in changed}


def recalibration(
    model: nn.Module,
    training_set: Batches,
    splits: Mapping[str, Batches],
    stats: Stats,
    samples: int | None,
    batch_size: int,
    eval_batch_size: int,
    *,
    plain: bool = False,
) -> Recalibration:
    """Measure what recalibrating changes on `splits`, evaluated in batches of `eval_batch_size`, and on what it hangs.

    `enough` is judged on the first of the splits: let it not be the test split. The other arguments and errors are
    those of `recalibrated`; the model is left as it was.
    """
    statistics = recalibrated(model, training_set, stats, samples, batch_size, plain=plain)
    count = samples_used(training_set, stats, samples, batch_size)

    def logits_with(fresh: Statistics) -> dict[str, tuple[Tensor, Tensor]]:
        with adopted(model, fresh), adopted(model, refreshed(model, training_set)):
            return {split: logits_of(model, batches.sequential(eval_batch_size)) for split, batches in splits.items()}

    with torch.no_grad(), preserved(model), evaluating(model):
        before, after = logits_with({}), logits_with(statistics)
        curve = []
        for number in curve_sizes(training_set, stats, count, batch_size):
            taken = recalibrated(model, training_set, stats, number, batch_size, plain=plain)
            some = logits_with(taken)
            curve.append(Point(number, {split: _level(*some[split], after[split][0]) for split in splits}))
        curve.append(Point(count, {split: _level(*after[split], after[split][0]) for split in splits}))
        gaps_before = layer_gaps(model, statistics)
        with adopted(model, statistics):
            gaps_after = layer_gaps(model, statistics)
    judged_on = next(iter(splits))
    return Recalibration(
        stats,
        count,
        len(training_set),
        statistics,
        tuple(change_of(split, before[split][0], *after[split]) for split in splits),
        tuple(gaps_before),
        tuple(gaps_after),
        tuple(curve),
        judged_on,
        enough([point.levels[judged_on] for point in curve], [point.samples for point in curve]),
    )


def curve_sizes(training_set: Batches, stats: Stats, samples: int, batch_size: int) -> list[int]:
    """Return the numbers of samples, below `samples`, at which the curve is taken."""
    powers = itertools.takewhile(lambda n: n < samples, (FIRST * FACTOR**k for k in itertools.count()))
    least = batch_size if stats == "precise" else 1
    used = {samples_used(training_set, stats, max(n, least), batch_size) for n in powers}
    return sorted(n for n in used if n < samples)


def enough(levels: Sequence[SplitLevel], samples: Sequence[int]) -> int:
    """Return the fewest of `samples` from which on no level is worse than the last by more than the constants above."""
    for level, fewest in zip(reversed(levels[:-1]), reversed(samples[1:]), strict=True):
        accuracy, loss = level.accuracy_off, level.loss_off
        if not (accuracy.value >= -_tolerance(accuracy) and loss.value <= ENOUGH_LOSS):  # nan is no better
            return fewest
    return samples[0]


def _is_near(accuracy: Interval, loss: Interval) -> bool:
    """Return whether two differences are within the constants above; one that is not finite never is."""
    return abs(accuracy.value) <= _tolerance(accuracy) and abs(loss.value) <= ENOUGH_LOSS


def _tolerance(accuracy: Interval) -> float:
    return max(ENOUGH_ACCURACY, 1 / accuracy.n)


def change_of(split: str, before: Tensor, after: Tensor, labels: Tensor) -> Change:
    """Return what evaluating with other statistics changes; logits of shape (N, classes)."""
    gap = Gap(after, before, labels)
    return Change(
        split,
        share_of(right(before, labels)),
        share_of(right(after, labels)),
        mean_of(gap.hits),
        mean_of(nats(before, labels)),
        mean_of(nats(after, labels)),
        mean_of(gap.losses),
        gap.flip_rate,
    )


def _level(logits: Tensor, labels: Tensor, of_all: Tensor) -> SplitLevel:
    gap = Gap(logits, of_all, labels)
    return SplitLevel(
        share_of(right(logits, labels)), mean_of(nats(logits, labels)), mean_of(gap.hits), mean_of(gap.losses)
    )
