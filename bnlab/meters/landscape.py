"""How smooth the loss is along a training step: Santurkar et al. 2018, figure 4, and their definition 2.1."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

import torch

from bnlab.meters.meter import (
    Gradient,
    Meter,
    Moment,
    Reading,
    cosine,
    difference,
    meters,
    no_whole_gradient,
    norm,
    parameters_by_layer,
    put,
    ratio,
)
from bnlab.norms.strategy import Strategy

FACTORS = (0.5, 1.0, 2.0, 4.0)  # of the learning rate


@meters.register("landscape")
class Landscape(Meter):
    """How much the loss and its gradient change along the gradient, and a layer's when those before it are updated.

    With g the gradient of the next batch's loss L at the weights w, and eta = 1/2, 1, 2, 4 times the learning rate:

    loss_range   max - min of L(w - eta g), on the same batch, with eta = 0 among them, nats
    grad_change  max of |grad L(w - eta g) - g|
    beta_smooth  max of |grad L(w - eta g) - g| / |eta g|, the effective smoothness
    grad_cosine  least cosine between grad L(w - eta g) and g

    By layer, `ics`, internal covariate shift: |g_i - g'_i| / |g_i|, with g'_i the gradient of layer i once the
    optimizer has updated the layers before it; `ics_cosine` between the two. Of the network: the median over layers.
    Statistics are those of the batch, under the weights in question; nothing is averaged meanwhile.
    Source: Santurkar et al., "How does batch normalization help optimization?", 2018.
    """

    @staticmethod
    def why_not(strategies: Sequence[Strategy]) -> str | None:
        return no_whole_gradient(strategies)

    def read(self, at: Moment) -> Iterable[Reading]:
        loss, gradient = at.gradient(at.copy())
        yield from _along(at, loss, gradient)
        yield from _covariate_shift(at, gradient)


def _along(at: Moment, loss: float, gradient: Gradient) -> Iterator[Reading]:
    model, losses, changes, cosines = at.copy(), [loss], [], []
    weights = [weight.detach().clone() for weight in model.parameters()]
    steepness = norm(gradient)
    for factor in FACTORS:
        put([w - factor * at.rate * g for w, g in zip(weights, gradient, strict=True)], model)
        there, other = at.gradient(model)
        losses.append(there)
        changes.append((norm(difference(other, gradient)), factor * at.rate * steepness))
        cosines.append(cosine(other, gradient))
    yield Reading("loss_range", max(losses) - min(losses))
    yield Reading("grad_change", max(change for change, _ in changes))
    yield Reading("beta_smooth", max(ratio(*change) for change in changes))
    yield Reading("grad_cosine", min(cosines))


def _covariate_shift(at: Moment, gradient: Gradient) -> Iterator[Reading]:
    """Compare each layer's gradient with that after the layers before it were updated.

    A layer's parameters are its weights; those of a norm, gamma and beta, go with the layer before it.
    """
    updated, optimizer = at.copy_with_optimizer()
    for weight, part in zip(updated.parameters(), gradient, strict=True):
        weight.grad = part.clone() if weight.requires_grad else None
    optimizer.step()
    mixed, shifts, cosines = at.copy(), [], []
    weights = list(zip(mixed.parameters(), updated.parameters(), strict=True))
    for depth, (name, owned) in enumerate(parameters_by_layer(mixed).items(), 1):
        _, after = at.gradient(mixed) if depth > 1 else (0.0, gradient)
        before_, after_ = [gradient[i] for i in owned], [after[i] for i in owned]
        shifts.append(ratio(norm(difference(after_, before_)), norm(before_)))
        cosines.append(cosine(after_, before_))
        yield Reading("ics", shifts[-1], name, depth)
        yield Reading("ics_cosine", cosines[-1], name, depth)
        with torch.no_grad():
            for i in owned:
                weights[i][0].copy_(weights[i][1])
    yield Reading("ics", _median(shifts))
    yield Reading("ics_cosine", _median(cosines))


def _median(values: Sequence[float]) -> float:
    """Return the median of those that are known: a layer that is cut off has a gradient of 0, and no change of it."""
    known = [value for value in values if math.isfinite(value)]
    return statistics.median(known) if known else math.nan
