"""The largest curvature of the loss: Hessian-vector products from differences of gradients, for every strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from bnlab.meters.meter import Gradient, Meter, Moment, Reading, gradient_of, meters, norm, put
from bnlab.norms.strategy import Strategy
from bnlab.seeding import generator

PRODUCTS = 30  # at most
CHANGE = 0.01  # of the estimate from product to product, at which it has converged
STEP = 1e-8  # of the central difference, over the length of all weights; with 1e-6 it met a kink of relu in 1 of 15


@meters.register("curvature")
class Curvature(Meter):
    """The eigenvalue of largest magnitude of the Hessian of the loss of a fixed training batch, and 2 over it.

    lambda_max   v . H v after power iteration from a seeded vector, of unit length each time, sign kept
    stable_rate  2 / lambda_max, at which plain gradient descent on that batch becomes unstable; nan unless above 0
    converged    1 if the last product changed lambda_max by less than 1 %, within 30 products

    H v = (grad L(w + h v) - grad L(w - h v)) / (2 h), h = 1e-8 |w|, in float64: that takes each strategy's own backward
    pass, where a second derivative would take one of it. Normalization is that of the batch, in training mode, and the
    gradient goes through it.
    """

    @staticmethod
    def why_not(strategies: Sequence[Strategy]) -> str | None:
        held = [strategy.name for strategy in strategies if not strategy.facts.exact_gradient]
        return f"the gradient of norm={held[0]} is not the derivative of its output" if held else None

    def read(self, at: Moment) -> Iterable[Reading]:
        model, (images, labels) = at.copy().double(), next(iter(at.samples(1)))
        batch = images.double(), labels

        def gradient_at(weights: Gradient) -> Gradient:
            put(weights, model)
            return gradient_of(model, batch, at.loss_of)[1]

        value, converged = largest_eigenvalue(gradient_at, [weight.detach().clone() for weight in model.parameters()])
        yield Reading("lambda_max", value)
        yield Reading("stable_rate", 2 / value if value > 0 else float("nan"))
        yield Reading("converged", float(converged))


def largest_eigenvalue(gradient_at: Callable[[Gradient], Gradient], weights: Gradient) -> tuple[float, bool]:
    """Return the eigenvalue of largest magnitude of the derivative of `gradient_at` at `weights`, and if it converged.

    By power iteration; `gradient_at` takes and returns float64 tensors of the shapes of `weights`.
    """
    h = STEP * norm(weights)
    draw = generator(0, "probes")
    vector = [torch.randn(w.shape, generator=draw, dtype=w.dtype).to(w.device) for w in weights]
    value = 0.0
    for product in range(PRODUCTS):
        length = norm(vector)
        if length == 0:
            return 0.0, True
        vector = [part / length for part in vector]
        above, below = (gradient_at([w + by * v for w, v in zip(weights, vector, strict=True)]) for by in (h, -h))
        times = [(a - b) / (2 * h) for a, b in zip(above, below, strict=True)]
        before, value = value, sum((v * t).sum().item() for v, t in zip(vector, times, strict=True))
        if product and abs(value - before) <= CHANGE * abs(value):
            return value, True
        vector = times
    return value, False
