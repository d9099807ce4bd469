"""Evaluation on a shifted test set, with stored statistics and with those of the shifted images themselves.

The choices are those of `eval.stats`: running, what evaluation normalizes with as it is; mixed, running and the batch's
weighed by sample counts (Schneider et al., "Improving robustness against common corruptions by covariate shift
adaptation", 2020); batch, of each batch; test, of the whole set, layer after layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.interval import Interval
from bnlab.measure.discrepancy import Gap, calibration_error, mean_of, nats, right, share_of
from bnlab.measure.layer_statistics import running_layers
from bnlab.measure.modes import evaluating, preserved
from bnlab.measure.population_statistics import adopted, mixed_with_batch, population_of
from bnlab.measure.probe_batches import logits_in_batches, mate_noise
from bnlab.seeding import generator

DRAWS = 4  # of batch-mates, the batches as they come among them


@dataclass(frozen=True)
class Robustness:
    """One set of images evaluated with one choice of statistics.

    flips: share of predictions that change with other batch-mates. mate_noise: mean over samples of the standard
    deviation of their logits over draws of batch-mates, over the RMS of the logits. The batch-mates of `test` are the
    whole set: it is evaluated with the statistics of a random half of it, and with those of the other half. None: too
    few samples.
    """

    stats: str
    samples: int
    accuracy: Interval  # a share
    difference: Interval | None  # of accuracy to `running`, paired by sample; None: this is running
    loss: Interval  # nats
    ece: float
    flips: float | None
    mate_noise: float | None


@dataclass(frozen=True)
class Condition:
    """A shift at one severity, and what each choice of statistics came to there."""

    shift: str  # "none": the test images as they are
    severity: int
    amount: float | None  # what the severity stands for
    unit: str
    found: tuple[Robustness, ...]


def robustness(
    model: nn.Module,
    samples: Split,
    device_batches: Callable[[Split], Batches],
    stats: Sequence[str],
    batch_size: int,
    prior: float,
) -> tuple[Robustness, ...]:
    """Evaluate `samples`, in their order in batches of `batch_size`, with each of `stats`; the model is left as it was.

    `device_batches` puts samples on the device as the model takes them; `prior` is the number of samples that the
    running statistics count for in `mixed`. A model without running statistics has nothing to choose: only `running`
    comes. Errors: IncompatibleError, for `test` only, when a layer with statistics is called more than once in a
    forward pass.
    """
    images = device_batches(samples)
    labels = samples.labels.to(images.device)
    layers = running_layers(model)
    with torch.no_grad(), preserved(model), evaluating(model):
        plain = _with_other_batch_mates(model, images, batch_size)
        judged = {"running": _judged("running", plain[0], plain, plain[0], labels)}
        for choice in stats if layers else ():
            if choice in ("mixed", "batch"):
                with mixed_with_batch(model, prior if choice == "mixed" else 0.0):
                    drawn = _with_other_batch_mates(model, images, batch_size)
                judged[choice] = _judged(choice, drawn[0], drawn, plain[0], labels)
            elif choice == "test":
                logits = _with_statistics_of(model, images, images, batch_size)
                halves = [device_batches(samples.take(half)) for half in _halves(len(samples))]
                by_half = [_with_statistics_of(model, half, images, batch_size) for half in halves]
                drawn = torch.stack(by_half or [logits])
                judged[choice] = _judged(choice, logits, drawn, plain[0], labels)
    return tuple(judged[choice] for choice in (stats if layers else ("running",)))


def _with_other_batch_mates(model: nn.Module, images: Batches, batch_size: int) -> Tensor:
    """Return the logits (K, N, classes) under K draws of batches, the first as the samples come.

    Two draws where batch-mates turn out to change nothing, one where there are none to exchange.
    """
    first = logits_in_batches(model, images, batch_size)
    if len(images) < 2 * batch_size:
        return first[None]
    second = logits_in_batches(model, images, batch_size, 1)
    if torch.equal(first, second):
        return torch.stack([first, second])
    others = [logits_in_batches(model, images, batch_size, draw) for draw in range(2, DRAWS)]
    return torch.stack([first, second, *others])


def _with_statistics_of(model: nn.Module, source: Batches, images: Batches, batch_size: int) -> Tensor:
    """Return the logits (N, classes) of `images`, normalized with the statistics of all of `source`."""
    with adopted(model, population_of(model, source, plain=True)):
        return logits_in_batches(model, images, batch_size)


def _halves(samples: int) -> tuple[Tensor, ...]:
    """Return the sample numbers of two random halves, each in stored order; none of a single sample."""
    if samples < 2:
        return ()
    order = torch.randperm(samples, generator=generator(0, "probes"))
    return order[: samples // 2].sort().values, order[samples // 2 :].sort().values


def _judged(stats: str, logits: Tensor, drawn: Tensor, plain: Tensor, labels: Tensor) -> Robustness:
    """Judge logits (N, classes) against those of running statistics; `drawn` (K, N, classes) has other batch-mates."""
    return Robustness(
        stats,
        len(labels),
        share_of(right(logits, labels)),
        None if stats == "running" else mean_of(Gap(logits, plain, labels).hits),
        mean_of(nats(logits, labels)),
        calibration_error(logits, labels),
        Gap(drawn[1:], drawn[0], labels).flips.mean().item() if len(drawn) > 1 else None,
        mate_noise(drawn, logits) if len(drawn) > 1 else None,
    )
