"""Gradients by layer, how they act on the scale of weights, and how much they vary from batch to batch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from bnlab.meters.meter import (
    Gradient,
    Meter,
    Moment,
    Reading,
    cosine,
    meters,
    no_whole_gradient,
    norm,
    parameters_by_layer,
    ratio,
)
from bnlab.norms.strategy import Strategy

BATCHES = 8  # for the noise, where the training set has as many


@meters.register("gradients")
class Gradients(Meter):
    """How large gradients are by layer, how much they vary from batch to batch, and what of them a norm takes away.

    By layer, of the next batch's loss, with W the weights of a linear layer or convolution and b its bias:

    gradient         |grad W|
    weight           |W|
    effective_rate   lr / |W|^2, the learning rate of the direction W / |W| where a norm takes the scale of W away
    euler_residual   <W, grad W> / (|W| |grad W|), 0 where the loss does not depend on the scale of W
    bias_gradient    |grad b| / |grad W|, 0 where a norm takes b away

    Of the network, the last three as the median over the layers that have them, of |euler_residual|, and:

    gradient_slope   slope of a least-squares line through log10 |grad W| over the layers
    gradient_spread  the largest log10 |grad W| less the smallest

    With g_1 .. g_m the gradients, of all parameters, of m = 8 batches of B fixed training samples, or of as many as the
    training set has, 2 at least:

    gradient_noise   tr Cov(g) = sum |g_i - mean g|^2 / (m - 1)
    gradient_signal  |mean g|^2 - gradient_noise / m, an unbiased estimate of |E g|^2, and so at times below 0
    noise_scale      B gradient_noise / gradient_signal, the batch size at which both are equal; nan unless above 0

    Nothing is augmented or dropped, so this is the noise of drawing samples alone. Where samples do not share their
    statistics it goes with 1 / B, and noise_scale does not depend on B. With batch norm the loss is no mean over
    samples, and neither need hold.
    Source: McCandlish et al., "An empirical model of large-batch training", 2018, appendix A.
    """

    @staticmethod
    def why_not(strategies: Sequence[Strategy]) -> str | None:
        return no_whole_gradient(strategies)

    def read(self, at: Moment) -> Iterable[Reading]:
        model = at.copy()
        yield from _by_layer(model, at.gradient(model)[1], at.rate)
        yield from _noise(at, model)


def _by_layer(model: nn.Module, gradient: Gradient, rate: float) -> Iterator[Reading]:
    named = {name: (each, g) for (name, each), g in zip(model.named_parameters(), gradient, strict=True)}
    readings = []
    for depth, layer in enumerate(parameters_by_layer(model), 1):
        weight, of_weight = named[f"{layer}.weight"]
        length, steepness = norm([weight]), norm([of_weight])
        figures = {
            "gradient": steepness,
            "weight": length,
            "effective_rate": ratio(rate, length**2),
            "euler_residual": cosine([weight], [of_weight]),
        }
        if f"{layer}.bias" in named:
            figures["bias_gradient"] = ratio(norm([named[f"{layer}.bias"][1]]), steepness)
        readings += [Reading(figure, value, layer, depth) for figure, value in figures.items()]
    yield from readings
    yield from _over_depth([reading.value for reading in readings if reading.figure == "gradient"])
    for figure in ("effective_rate", "euler_residual", "bias_gradient"):
        found = [abs(r.value) for r in readings if r.figure == figure and not math.isnan(r.value)]
        yield Reading(figure, statistics.median(found) if found else math.nan)


def _over_depth(lengths: Sequence[float]) -> Iterator[Reading]:
    slope = spread = math.nan
    if len(lengths) > 1 and all(0 < length < math.inf for length in lengths):
        logs = [math.log10(length) for length in lengths]
        slope, spread = statistics.linear_regression(range(len(logs)), logs).slope, max(logs) - min(logs)
    yield Reading("gradient_slope", slope)
    yield Reading("gradient_spread", spread)


def _noise(at: Moment, model: nn.Module) -> Iterator[Reading]:
    """Compare gradients of batches; only their sum is held, in float64, so that squares may be subtracted."""
    size, count, squares = at.batch_size, 0, 0.0
    total: Gradient = [torch.zeros_like(weight, dtype=torch.float64) for weight in model.parameters()]
    for batch in at.samples(BATCHES * size):
        _, gradient = at.gradient(model, batch)
        total = [a + b for a, b in zip(total, gradient, strict=True)]
        squares += norm(gradient) ** 2
        count += 1
    noise = signal = math.nan
    if count > 1:
        of_mean = (norm(total) / count) ** 2
        noise = max(0.0, squares - count * of_mean) / (count - 1)
        signal = of_mean - noise / count
    yield Reading("gradient_noise", noise)
    yield Reading("gradient_signal", signal)
    yield Reading("noise_scale", size * noise / signal if signal > 0 else math.nan)
