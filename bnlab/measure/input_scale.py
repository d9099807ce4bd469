"""Whether a model of others is given its images in the scale of its training: other usual scales are tried on it."""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from torch import Tensor, nn

from bnlab.errors import brief
from bnlab.measure.layer_statistics import initial_left, kept, normalizations, running_layers, statistics_of
from bnlab.measure.modes import evaluating, preserved
from bnlab.measure.population_statistics import Reached, hooked

OFF, FITS = math.log(1.7), 0.25  # medians over channels: another scale, and the same
MOST_LEFT = 0.9  # of the initial statistics: what is there of a training's own tells too little
WAYS_OUT = {
    "in [0, 1]": "",
    "standardized": "",
    "from 0 to 255": ", and 255 * x before the model, or without a division by 255 in it",
    "in [-1, 1]": ", and 2 * x - 1 before the model",
}


def other_scale(model: nn.Module, pixels: Tensor, given: str, mean: Tensor, std: Tensor) -> str:
    """Return what to say where the first running statistics fit images in another scale, and not as `given`; else "".

    `pixels` in [0, 1], shape (N, C, H, W); `mean` and `std`, shape (C, 1, 1), standardize them. The share of the
    initial statistics is taken out of the running ones.
    """
    scales = dict(zip(WAYS_OUT, (pixels, (pixels - mean) / std, 255 * pixels, 2 * pixels - 1), strict=True))
    found = {name: fit for name, images in scales.items() if (fit := _first_layer(model, images))}
    if given not in found:
        return ""
    best = min(found, key=lambda name: _off(found[name]))
    (layer, _, now), (_, _, then) = found[given], found[best]
    if _off(found[given]) < OFF or not _off(found[best]) < FITS:
        return ""
    norm = "standardize" if best == "standardized" else "none"
    return (
        f"The images are not in the scale of its training: the running deviations of layer {layer or '-'} are those of "
        f"images {best} times {math.exp(then):.2f}, and of images {given} times {brief(math.exp(now))}. Try "
        f"model.input_norm={norm}{WAYS_OUT[best]}."
    )


def _first_layer(model: nn.Module, images: Tensor) -> tuple[str, float, float] | None:
    """Return the name of the first layer with statistics, and how far its means are from those of its input in sigma
    and the log ratio of deviations, medians over channels; None: nothing can be told."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def look(layer: nn.Module, x: Tensor) -> None:
        seen.append((layer, x))
        raise Reached

    with torch.no_grad(), preserved(model), evaluating(model), hooked(running_layers(model), look), suppress(Reached):
        model(images)
    if not seen:
        return None
    layer, x = seen[0]
    left = initial_left(layer) or 0.0
    if left > MOST_LEFT:
        return None
    mean, var = statistics_of(layer, x)
    held_mean, held_var = kept(layer)
    held_mean, held_var = held_mean / (1 - left), (held_var - left) / (1 - left)
    varies = (var > 0) & (held_var > 0)
    if 2 * int(varies.sum()) < len(var):
        return None
    ratio = (held_var / var)[varies].log() / 2
    z = ((held_mean - mean).abs() / held_var.sqrt())[varies]
    name = next(name for name, each in normalizations(model).items() if each is layer)
    return name, float(z.median()), float(ratio.median())


def _off(fit: tuple[str, float, float]) -> float:
    return max(fit[1], abs(fit[2]))
