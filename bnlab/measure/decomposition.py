"""Why a model behaves differently in evaluation: its total gap as a sum of causes.

The same weights are evaluated again and again on the same samples, each time with one cause less:

training mode as it is
  - augmentation            the images as they are
  - dropout                 the rest of the model as in training
  - other                   only the normalization layers as in training: what is no dropout, and no normalization layer
                            that can be seen
  - batch noise             statistics of the training set in place of each batch's, the variance still too small by
                            (n - 1)/n as that of a batch of n values is on average
  - biased variance         the variance in full
  - initial statistics      mixed with the share of mean 0 and variance 1 that the moving average still has
  - moving average          the running statistics: what else is in them, of earlier weights, of the last batches only,
                            of augmented images and dropped activations
evaluation mode

Each term is the difference of two neighbours, so that they add up to the total. How far a term moves the predictions is
the mean KL divergence between the two; unlike a difference of losses it cannot cancel, so it tells which one dominates.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from bnlab.interval import Interval
from bnlab.measure.discrepancy import Gap, mean_of
from bnlab.measure.layer_statistics import Statistics, initial_left, running_layers, values_read
from bnlab.measure.modes import dropout_off, evaluating, learners, preserved, restored, training_statistics
from bnlab.measure.population_statistics import StatisticsPlan, adopted, hooked, population
from bnlab.measure.probe_batches import Probe, logits_in_batches

DRAWS = 8  # of batches, for everything that depends on batch-mates
GRADIENT_ROUNDING = 1e-3  # of the RMS of the logits: kernels that keep something for the gradient may round otherwise


@dataclass(frozen=True)
class Term:
    """One cause: accuracy and loss before it is taken away minus after."""

    name: str
    accuracy: Interval  # a share, not points
    loss: Interval  # nats
    moved: float  # mean KL(before || after) in nats
    flips: float  # share of predictions that change
    absent: str | None = None  # why it is 0 without a measurement: "the model has no dropout"


@dataclass(frozen=True)
class Decomposition:
    """The total gap, training mode minus evaluation mode, and its terms in the order above."""

    split: str
    terms: tuple[Term, ...]
    total: Term
    batch_size: int
    initial_left: float | None  # the largest share of the initial statistics among the layers; None: they keep none
    updates: int | None  # of that layer's running statistics
    momentum: float | None  # of that layer
    reads_batch: bool = True  # False: training takes statistics of each sample, as instance norm, not of a batch


@dataclass(frozen=True)
class Stages:
    """The logits of one probe, one stage after the other; float32 of shape (K, N, classes) with K draws, or 1."""

    full: Tensor  # training mode as it is
    unaugmented: Tensor
    dropless: Tensor  # dropout off, the rest of the model as in training
    undropped: Tensor  # only the normalization layers as in training
    biased: Tensor  # statistics of the training set, the variance as small as a batch's is on average
    population: Tensor
    initial: Tensor  # mixed with what is left of mean 0 and variance 1
    running: Tensor  # evaluation mode


NAMES = ("augmentation", "dropout", "other", "batch noise", "biased variance", "initial statistics", "moving average")
BESIDE_NORMALIZATION = NAMES[:3]


@dataclass(frozen=True)
class Levels:
    """The statistics that the stages put into the layers; a layer that is not there keeps its own."""

    biased: Statistics
    population: Statistics
    initial: Statistics
    evaluation: Statistics  # of layers that take theirs anew for evaluation


def levels(model: nn.Module, how: StatisticsPlan, batch: Tensor, evaluation: Statistics) -> Levels:
    """Return the statistics of each stage; `batch` is one training batch, it tells the values a variance is over."""
    of_population = population(model, how)
    factors = _shrinkage(model, batch)
    mixed: Statistics = {}
    for layer, (mean, var) in of_population.items():
        left = initial_left(layer)
        mixed[layer] = (mean, var) if left is None else ((1 - left) * mean, (1 - left) * var + left)
    return Levels(population(model, how, factors) if factors else of_population, of_population, mixed, evaluation)


def _shrinkage(model: nn.Module, batch: Tensor) -> dict[nn.Module, float]:
    """Return (n - 1)/n of each layer that divides by the biased variance of n values of its batch."""
    factors: dict[nn.Module, float] = {}

    def look(layer: nn.Module, x: Tensor) -> None:
        values = values_read(layer, x)
        if values is not None and values > 1:
            factors[layer] = (values - 1) / values

    with torch.no_grad(), evaluating(model), hooked(learners(model), look):
        model(batch)
    return factors


def stages(model: nn.Module, probe: Probe, at: Levels) -> Stages:
    """Evaluate the probe at every stage. Draws stop at the first two where batch-mates turn out to change nothing."""
    with torch.no_grad(), preserved(model):
        undropped = _drawn(partial(_norms_training, model, probe))
        as_trained = partial(_training, model, probe, with_gradient=_reads_gradient_mode(model, probe))
        unaugmented = _unless_equal(undropped, partial(as_trained, "plain"))
        dropless = undropped if unaugmented is undropped else _unless_equal(undropped, partial(as_trained, "dropless"))
        full = unaugmented
        if probe.augmented is not None:
            full = torch.stack([as_trained("augmented", draw) for draw in range(DRAWS)])
        stored = [_stored(model, probe, level) for level in (at.biased, at.population, at.initial, at.evaluation)]
        return Stages(full, unaugmented, dropless, undropped, *stored)


def _drawn(logits_of_draw: Callable[[int], Tensor]) -> Tensor:
    first, second = logits_of_draw(0), logits_of_draw(1)
    if torch.equal(first, second):
        return first[None]
    return torch.stack([first, second, *(logits_of_draw(draw) for draw in range(2, DRAWS))])


def _unless_equal(known: Tensor, logits_of_draw: Callable[[int], Tensor]) -> Tensor:
    """Return the logits of every draw, or `known` where the first shows that they are the same."""
    first = logits_of_draw(0)
    if torch.equal(first, known[0]):
        return known
    return torch.stack([first, *(logits_of_draw(draw) for draw in range(1, DRAWS))])


def _norms_training(model: nn.Module, probe: Probe, draw: int) -> Tensor:
    with training_statistics(model) as start_again:
        return logits_in_batches(model, probe.plain, probe.batch_size, draw, start_again)


def _training(
    model: nn.Module,
    probe: Probe,
    how: Literal["plain", "augmented", "dropless"],
    draw: int,
    *,
    with_gradient: bool,
) -> Tensor:
    images = probe.augmented if how == "augmented" and probe.augmented is not None else probe.plain
    off: AbstractContextManager[list[nn.Module]] = dropout_off(model) if how == "dropless" else nullcontext([])
    # all of it comes back: other modules may keep something in training too
    with preserved(model), restored(model) as put_back, off as dropping:

        def start_again() -> None:
            put_back()
            model.train()
            for module in dropping:
                module.training = False

        torch.default_generator.manual_seed(draw)  # of dropout; the random state comes back with the rest
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(draw)
        return logits_in_batches(model, images, probe.batch_size, draw, start_again, with_gradient)


def _reads_gradient_mode(model: nn.Module, probe: Probe) -> bool:
    """Return whether one training batch comes out otherwise, beyond rounding, with gradients on, as in training."""
    images, _ = next(probe.plain.sequential(probe.batch_size))
    logits = []
    for with_gradient in (False, True):
        with preserved(model), torch.set_grad_enabled(with_gradient):
            torch.default_generator.manual_seed(0)
            model.train()
            logits.append(model(images).detach().double())
    off, on = logits
    return bool((on - off).abs().max() > GRADIENT_ROUNDING * off.square().mean().sqrt())


def _stored(model: nn.Module, probe: Probe, statistics: Statistics) -> Tensor:
    with evaluating(model), adopted(model, statistics):
        return logits_in_batches(model, probe.plain, probe.batch_size)[None]


def decompose(model: nn.Module, probe: Probe, staged: Stages) -> Decomposition:
    """Return the gap of one probe as the sum of its terms."""
    absent: dict[str, str] = {}
    if probe.augmented is None:
        absent["augmentation"] = "training does not augment"
    if staged.unaugmented is staged.undropped:
        absent |= dict.fromkeys(("dropout", "other"), "nothing but normalization depends on the mode")
    elif staged.dropless is staged.undropped:
        absent["other"] = "nothing but normalization and dropout depends on the mode"
    layers = learners(model)
    if not layers:
        absent |= dict.fromkeys(NAMES[3:6], "no layer averages batches")
    if not running_layers(model):
        absent[NAMES[6]] = "no layer keeps statistics"
    chain = [
        staged.full,
        staged.unaugmented,
        staged.dropless,
        staged.undropped,
        staged.biased,
        staged.population,
        staged.initial,
        staged.running,
    ]
    pairs = zip(NAMES, chain, chain[1:], strict=False)
    terms = tuple(term(name, before, after, probe.labels, absent.get(name)) for name, before, after in pairs)
    fading = [(left, layer) for layer in layers if (left := initial_left(layer)) is not None]
    left, slowest = max(fading, key=lambda pair: pair[0], default=(None, None))
    return Decomposition(
        probe.split,
        terms,
        term("total", staged.full, staged.running, probe.labels),
        probe.batch_size,
        left,
        None if slowest is None else int(cast(Tensor, slowest.num_batches_tracked)),
        None if slowest is None else cast(float | None, slowest.momentum),
        len(staged.undropped) > 1 or len(probe) < 2 * probe.batch_size,
    )


def term(name: str, before: Tensor, after: Tensor, labels: Tensor, absent: str | None = None) -> Term:
    """Return the difference between two stages, logits of shape (K or 1, N, classes).

    `absent` says why there should be none; it is dropped where there is one, as of a layer that reads its batch unseen.
    """
    gap = Gap(before, after, labels)
    moved = gap.kl.mean().item()
    return Term(
        name, mean_of(gap.hits), mean_of(gap.losses), moved, gap.flips.mean().item(), None if moved > 0 else absent
    )
