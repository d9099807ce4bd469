"""Why a model behaves differently in evaluation: its total gap as a sum of causes.

The same weights are evaluated again and again on the same samples, each time with one cause less. Statistics come
first, on the very images that training normalizes: no stage pairs images with statistics that neither mode gives them.

training mode as it is, images augmented and dropout on
  - batch noise             statistics of the training set, as training sees it, in place of each batch's, the variance
                            still too small by (n - 1)/n as that of a batch of n values is on average
  - biased variance         the variance in full
  - dropout in statistics   those without dropout, where the running statistics are nearer to them
  - augmentation in statistics  those of plain images, likewise
  - initial statistics      mixed with the share of mean 0 and variance 1 that the moving average still has
  - moving average          the running statistics: what else is in them, of earlier weights, of the last batches only
  - dropout                 the rest of the model as in training
  - other                   evaluation mode: what is no dropout, and no normalization layer that can be seen
  - augmentation            the images as they are
evaluation mode

Each term is the difference of two neighbours, so that they add up to the total. How far a term moves the predictions is
the mean KL divergence between the two; unlike a difference of losses it cannot cancel, so it tells which one dominates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.interval import Interval
from bnlab.measure.discrepancy import Gap, mean_of
from bnlab.measure.layer_statistics import (
    Statistics,
    distance,
    initial_left,
    initial_shown,
    kept,
    running_layers,
    values_read,
)
from bnlab.measure.modes import (
    dropout_off,
    evaluating,
    learners,
    normalizing_as_evaluation,
    preserved,
    restored,
    seeded,
    training_statistics,
)
from bnlab.measure.population_statistics import StatisticsPlan, adopted, hooked, population
from bnlab.measure.probe_batches import Probe, logits_in_batches
from bnlab.norms.strategy import NormLayer

DRAWS = 8  # of batches, for everything that depends on batch-mates
IMAGE_DRAWS = 4  # of augmentation and dropout beside them, where every stage is evaluated under each
GRADIENT_ROUNDING = 1e-3  # of the RMS of the logits: kernels that keep something for the gradient may round otherwise
NEARER = 0.25  # statistics are those of other images where their distance is less than this part: half as far off


@dataclass(frozen=True)
class Term:
    """One cause: accuracy and loss before it is taken away minus after."""

    name: str
    accuracy: Interval  # a share, not points
    loss: Interval  # nats
    moved: float  # mean KL(before || after) in nats
    flips: float  # share of predictions that change
    absent: str | None = None  # why it is 0, or not a number, without a measurement: "the model has no dropout"


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
    adds_noise: bool = False  # a layer adds noise of its own in training
    unread: str = ""  # layers that keep something in training that is not read; only where the terms are defined
    classes: int = 0  # logits of a sample


@dataclass(frozen=True)
class Stages:
    """The logits of one probe, one stage after the other; float32 of shape (K, N, classes) with K draws, or 1.

    Where nothing is augmented or dropped, `full` is `norms` and each stage of stored statistics is evaluation mode with
    those. None: the statistics are not defined.
    """

    norms: Tensor  # plain images, only the normalization layers as in training
    full: Tensor  # training mode as it is
    biased: Tensor | None  # statistics of the training set, the variance as small as a batch's is on average
    population: Tensor | None
    undropped_statistics: Tensor | None
    plain_statistics: Tensor | None
    initial: Tensor | None  # mixed with what is left of mean 0 and variance 1
    running: Tensor
    dropless: Tensor  # dropout off, the rest of the model as in training
    undropped: Tensor  # evaluation mode, on images as training sees them
    evaluation: Tensor  # (1, N, classes)


NAMES = (
    "batch noise",
    "biased variance",
    "dropout in statistics",
    "augmentation in statistics",
    "initial statistics",
    "moving average",
    "dropout",
    "other",
    "augmentation",
)
BY_STATISTICS = NAMES[:6]


@dataclass(frozen=True)
class Levels:
    """The statistics that the stages put into the layers; a layer that is not there keeps its own.

    None: they are not defined, and `undefined` says why.
    """

    biased: Statistics | None
    population: Statistics | None  # as training sees the training set
    undropped: Statistics | None  # the same, or where the running statistics are nearer to it, without dropout
    held: Statistics | None  # likewise, of plain images
    initial: Statistics | None
    evaluation: Statistics  # of layers that take theirs anew for evaluation
    plain: Statistics | None = None  # of plain images without dropout, where training sees others
    undefined: str | None = None


def levels(model: nn.Module, how: StatisticsPlan | str, batch: Tensor, evaluation: Statistics) -> Levels:
    """Return the statistics of each stage; `batch` is one training batch, it tells the values a variance is over.

    `how`: the plan, or why there is none.
    """
    if isinstance(how, str):
        return Levels(None, None, None, None, None, evaluation, undefined=how)
    factors = _shrinkage(model, batch)
    both = how.dropped and how.augmented
    rounds = 1 + bool(factors) + (not how.plain) + both
    parts = [replace(how, watch=_part(how.watch, number, rounds)) for number in range(rounds)]
    of_population = population(model, parts.pop(0))
    biased = population(model, parts.pop(0), factors) if factors else of_population
    undropped = held = of_population
    plain = None if how.plain else population(model, replace(parts.pop(0), augmented=False, dropped=False))
    if plain is not None:
        if both:
            undropped = _nearer(of_population, population(model, replace(parts.pop(0), dropped=False)))
        held = _nearer(undropped, plain)
        if not how.augmented:
            undropped = held
    shares = {layer: initial_shown(layer, both) or 0.0 for layer, both in held.items()}
    mixed = {
        layer: ((1 - shares[layer]) * m, (1 - shares[layer]) * v + shares[layer]) for layer, (m, v) in held.items()
    }
    initial = mixed if any(shares.values()) else held
    return Levels(biased, of_population, undropped, held, initial, evaluation, plain)


def _part(watch: Callable[[float], None], number: int, rounds: int) -> Callable[[float], None]:
    """Return what one of several rounds is to tell its share to."""
    return lambda share: watch((number + share) / rounds)


def _nearer(one: Statistics, other: Statistics) -> Statistics:
    """Return `other` where the running statistics are clearly nearer to it than to `one`, over all layers."""
    to_one, to_other = (
        sum(distance(kept(layer), each[layer], one[layer][1]) for layer in one) for each in (one, other)
    )
    return other if to_other < NEARER * to_one else one


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
        norms = _drawn(partial(_norms_training, model, probe))
        evaluation = _stored(model, probe.plain, probe, at.evaluation, 0)[None]
        with_gradient = _reads_gradient_mode(model, probe)
        as_trained = partial(_training, model, probe, with_gradient=with_gradient)
        drops = not _alike(as_trained(probe.plain, 0), norms[0])
        seen = probe.plain if probe.augmented is None else probe.augmented
        if drops or seen is not probe.plain:
            full = torch.stack([as_trained(seen, draw) for draw in range(IMAGE_DRAWS)])
        else:
            full = norms

        def stored(statistics: Statistics, rest: Rest) -> Tensor:
            if rest == "evaluation" and seen is probe.plain:
                if statistics is at.evaluation:
                    return evaluation
                return _stored(model, seen, probe, statistics, 0)[None]
            draw = partial(_stored, model, seen, probe, statistics, rest=rest, with_gradient=with_gradient)
            return torch.stack([draw(number) for number in range(IMAGE_DRAWS)])

        found: list[Tensor | None] = []
        wanted = (at.biased, at.population, at.undropped, at.held, at.initial, at.evaluation)
        for place, statistics in enumerate(wanted):
            same = next((i for i, earlier in enumerate(wanted[:place]) if earlier is statistics), None)
            if same is not None:
                found.append(found[same])
            else:
                found.append(None if statistics is None else stored(statistics, "training" if drops else "evaluation"))
        biased, of_population, undropped_statistics, held, initial, running = found
        assert running is not None
        dropless = undropped = running
        if drops:
            dropless, undropped = stored(at.evaluation, "dropless"), stored(at.evaluation, "evaluation")
            if _alike(dropless, undropped.expand_as(dropless)):
                dropless = undropped
        before = (biased, of_population, undropped_statistics, held, initial)
        return Stages(norms, full, *before, running, dropless, undropped, evaluation)


def _alike(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)  # NaN beside NaN is no difference


def _drawn(logits_of_draw: Callable[[int], Tensor]) -> Tensor:
    first, second = logits_of_draw(0), logits_of_draw(1)
    if _alike(first, second):
        return first[None]
    return torch.stack([first, second, *(logits_of_draw(draw) for draw in range(2, DRAWS))])


def _norms_training(model: nn.Module, probe: Probe, draw: int) -> Tensor:
    with training_statistics(model) as start_again:
        return logits_in_batches(model, probe.plain, probe.batch_size, draw, start_again)


def _training(model: nn.Module, probe: Probe, images: Batches, draw: int, *, with_gradient: bool) -> Tensor:
    with preserved(model), restored(model) as put_back:  # all of it: other modules may keep something in training too

        def start_again() -> None:
            put_back()
            model.train()

        seeded(draw)  # dropout; the random state comes back with the rest
        return logits_in_batches(model, images, probe.batch_size, draw, start_again, with_gradient)


def _reads_gradient_mode(model: nn.Module, probe: Probe) -> bool:
    """Return whether one training batch comes out otherwise, beyond rounding, with gradients on, as in training."""
    images, _ = next(probe.plain.sequential(probe.batch_size))
    logits = []
    for with_gradient in (False, True):
        with preserved(model), torch.set_grad_enabled(with_gradient):
            seeded(0)
            model.train()
            logits.append(model(images).detach().double())
    off, on = logits
    return bool((on - off).abs().max() > GRADIENT_ROUNDING * off.square().mean().sqrt())


Rest = Literal["training", "dropless", "evaluation"]  # how all but the normalization layers act


def _stored(
    model: nn.Module,
    images: Batches,
    probe: Probe,
    statistics: Statistics,
    draw: int,
    *,
    rest: Rest = "evaluation",
    with_gradient: bool = False,
) -> Tensor:
    """Evaluate with stored statistics; the masks of dropout are those of `_training` in the same draw."""
    off: AbstractContextManager[list[nn.Module]] = dropout_off(model) if rest == "dropless" else nullcontext([])
    acting = evaluating(model) if rest == "evaluation" else normalizing_as_evaluation(model)
    with acting, adopted(model, statistics), off as dropping:
        for module in dropping:
            module.training = False
        if rest != "evaluation":
            seeded(draw)
        with_gradient = with_gradient and rest != "evaluation"
        return logits_in_batches(model, images, probe.batch_size, draw, with_gradient=with_gradient)


def decompose(model: nn.Module, probe: Probe, staged: Stages, at: Levels, unread: str = "") -> Decomposition:
    """Return the gap of one probe as the sum of its terms.

    `unread` names layers that keep something in training that is not read: where no other layer averages batches, the
    terms of the statistics are not defined.
    """
    absent = _absent(model, probe, staged, at)
    unmeasured = dict.fromkeys(BY_STATISTICS, f"not measurable: bnlab does not read {unread}")
    if not unread or at.undefined is not None or learners(model):
        unmeasured = {}
    absent |= unmeasured
    chain = [
        staged.full,
        staged.biased,
        staged.population,
        staged.undropped_statistics,
        staged.plain_statistics,
        staged.initial,
        staged.running,
        staged.dropless,
        staged.undropped,
        staged.evaluation,
    ]
    pairs = zip(NAMES, itertools.pairwise(chain), strict=True)
    terms = tuple(
        term(name, None if name in unmeasured else before, after, probe.labels, absent.get(name))
        for name, (before, after) in pairs
    )
    held = (at.held or {}).items()
    fading = [(left, layer) for layer, both in held if (left := initial_shown(layer, both)) is not None]
    left, slowest = max(fading, key=lambda pair: pair[0], default=(None, None))
    return Decomposition(
        probe.split,
        terms,
        term("total", staged.full, staged.evaluation, probe.labels),
        probe.batch_size,
        left,
        None if slowest is None else int(cast(Tensor, slowest.num_batches_tracked)),
        None if slowest is None else cast(float | None, slowest.momentum),
        len(staged.norms) > 1 or len(probe) < 2 * probe.batch_size,
        any(isinstance(layer, NormLayer) and layer.adds_noise for layer in model.modules()),
        unread if at.undefined is None else "",
        staged.evaluation.shape[-1],
    )


def _absent(model: nn.Module, probe: Probe, staged: Stages, at: Levels) -> dict[str, str]:
    """Return, by term, why it is 0 or not defined without a measurement."""
    absent: dict[str, str] = {}
    if staged.undropped is staged.running:
        names = ("dropout", "other", "dropout in statistics")
        absent |= dict.fromkeys(names, "nothing but normalization depends on the mode")
    elif at.undropped is at.population:
        absent["dropout in statistics"] = "evaluation's statistics hold what training's do"
    if staged.dropless is staged.undropped is not staged.running:
        absent["other"] = "nothing but normalization and dropout depends on the mode"
    if probe.augmented is None:
        absent["augmentation"] = absent["augmentation in statistics"] = "training does not augment"
    elif at.held is at.undropped:
        absent["augmentation in statistics"] = "evaluation's statistics hold what training's do"
    if at.undefined is not None:
        return absent | dict.fromkeys(BY_STATISTICS, at.undefined)
    layers = learners(model)
    if not layers:
        absent |= dict.fromkeys(NAMES[:5], "no layer averages batches")
    elif at.initial is not None and all(initial_shown(layer, both) is None for layer, both in (at.held or {}).items()):
        counted = max((left for layer in layers if (left := initial_left(layer)) is not None), default=0.0)
        if counted:
            absent["initial statistics"] = (
                f"{100 * counted:.3g} % by the count of updates, which the statistics do not show"
            )
    if not running_layers(model):
        absent["moving average"] = "no layer keeps statistics"
    return absent


def term(name: str, before: Tensor | None, after: Tensor | None, labels: Tensor, absent: str | None = None) -> Term:
    """Return the difference between two stages, logits of shape (K or 1, N, classes); of None it is not defined.

    `absent` says why there should be none; it is dropped where there is one, as of a layer that reads its batch unseen.
    """
    if before is None or after is None:
        undefined = Interval(math.nan, None, None, len(labels))
        return Term(name, undefined, undefined, math.nan, math.nan, absent)
    gap = Gap(before, after, labels)
    moved = gap.kl.mean().item()
    return Term(
        name, mean_of(gap.hits), mean_of(gap.losses), moved, gap.flips.mean().item(), None if moved > 0 else absent
    )
