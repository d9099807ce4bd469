"""How far the running statistics of each layer are from those that they stand for, by depth."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from bnlab.measure.layer_statistics import Statistics, initial_shown, kept, normalizations


@dataclass(frozen=True)
class LayerGap:
    """One layer's running statistics against a reference.

    mean_z = |running mean - mean| / sigma, log_std_ratio = log(running sigma / sigma), sigma^2 the variance of the
    reference without epsilon: median over the layer's channels, and the value that lies farthest from 0. A channel
    whose variance is 0 is left out.
    """

    depth: int  # counted from 1, in order of execution
    name: str
    kind: str  # the class
    channels: int
    mean_z: float
    mean_z_max: float
    log_std_ratio: float
    log_std_ratio_max: float  # with its sign
    initial_left: float | None  # None: no such share, or none that the statistics bear out
    frozen: bool = False  # training leaves it in evaluation mode


def layer_gaps(model: nn.Module, reference: Statistics, frozen: Collection[nn.Module] = ()) -> list[LayerGap]:
    """Return the gap of each layer in `reference`, which is in order of execution."""
    names = {layer: name for name, layer in normalizations(model).items()}
    return [_gap(depth, names[each], each, reference, each in frozen) for depth, each in enumerate(reference, 1)]


def _gap(depth: int, name: str, layer: nn.Module, reference: Statistics, frozen: bool) -> LayerGap:
    mean, var = reference[layer]
    running_mean, running_var = kept(layer)
    varies = var != 0  # what is not finite stays in, to be seen
    sigma = var[varies].sqrt()
    z = (running_mean - mean)[varies].abs() / sigma
    ratio = (running_var[varies].sqrt() / sigma).log()
    if not len(z):
        z = ratio = torch.zeros(1, dtype=torch.float64)
    farthest = ratio[ratio.abs().argmax()]
    return LayerGap(
        depth,
        name,
        type(layer).__name__,
        len(mean),
        float(z.quantile(0.5)),
        float(z.max()),
        float(ratio.quantile(0.5)),
        float(farthest),
        None if frozen else initial_shown(layer, reference[layer]),
        frozen,
    )
