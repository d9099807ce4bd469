"""Distributions inside the network: what enters activations, what leaves normalizations, and which units are dead."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bnlab.measure.modes import training_statistics
from bnlab.measure.moments import chunk_moments
from bnlab.meters.meter import Meter, Moment, Reading, meters
from bnlab.models.model import ACTIVATIONS, norm_layers
from bnlab.norms.formula import batch_axes, deviation
from bnlab.norms.strategy import NormLayer, NormModule
from bnlab.seeding import generator

SAMPLES = 256
UNITS = 16  # of a layer
PERCENTILES = (15, 50, 85)


@meters.register("activations")
class Activations(Meter):
    """How steady what enters the activations is, how near mean 0 and deviation 1 normalizations come, and dead units.

    Of 256 fixed training samples, in training mode, batch by batch, nothing dropped. A unit is a channel, its values
    are those of all samples and pixels; bands are of 16 seeded units of the first, the middle and the last hidden
    layer.

    drift_index  way of the median in widths of its band since the first reading, mean over units: sum over readings of
                 |p50 - p50 before|, over the mean over readings of (p85 - p15)
    band_ratio   p85 - p15 over that of the first reading, geometric mean over units
    dead         share of units whose activation gives one value for everything; of relu, 0
    mean_off     largest |mean| over channels and batches behind a normalization, before gamma and beta
    std_off      largest |std - s / sqrt(s^2 + eps)| there, with s the deviation in front of it
    p50          median of what enters the activation, by unit (axis `unit 3`); so are p15 and p85, percentiles

    Drift and ratio are of the network; dead, mean_off and std_off by layer too. In a network without modules that are
    activations there are only the last two. Source: Ioffe and Szegedy, "Batch Normalization", 2015, figure 1.
    """

    def read(self, at: Moment) -> Iterable[Reading]:
        hidden, normalized = _watched(at)
        if hidden:
            yield from self._bands(hidden)
            yield from _dead(hidden)
        for depth, (name, off) in enumerate(normalized.items(), 1):
            yield Reading("mean_off", off.mean, name, depth)
            yield Reading("std_off", off.std, name, depth)
        yield Reading("mean_off", max((off.mean for off in normalized.values()), default=0.0))
        yield Reading("std_off", max((off.std for off in normalized.values()), default=0.0))

    def _bands(self, hidden: list[_Hidden]) -> Iterator[Reading]:
        bands = []
        for depth in sorted(_shown(len(hidden))):
            layer = hidden[depth]
            bands.append(layer.band())
            for percent, values in zip(PERCENTILES, bands[-1].tolist(), strict=True):
                for unit, value in zip(layer.units.tolist(), values, strict=True):
                    yield Reading(f"p{percent}", value, layer.name, depth + 1, f"unit {unit}")
        low, median, high = torch.cat(bands, 1)
        width = high - low
        past = self.memory or {"first": width, "median": median, "moved": 0 * width, "widths": 0 * width, "readings": 0}
        self.memory = {
            "first": past["first"],
            "median": median,
            "moved": past["moved"] + (median - past["median"]).abs(),
            "widths": past["widths"] + width,
            "readings": past["readings"] + 1,
        }
        drift = self.memory["moved"] * self.memory["readings"] / self.memory["widths"]
        ratio = width / past["first"]
        yield Reading("drift_index", drift[self.memory["widths"] > 0].mean().item())
        yield Reading("band_ratio", ratio[(width > 0) & (past["first"] > 0)].log().mean().exp().item())


@dataclass
class _Hidden:
    """One hidden layer: what entered its activation, of some units, and the range of what left it, of all."""

    name: str
    units: Tensor
    low: Tensor
    high: Tensor
    inputs: list[Tensor] = field(default_factory=list)  # of shape (units, values)

    def band(self) -> Tensor:
        """Return the percentiles, float64 of shape (3, units)."""
        values = torch.cat(self.inputs, 1).double().cpu().numpy()
        return torch.from_numpy(np.percentile(values, PERCENTILES, axis=1))


@dataclass
class _Off:
    """How far a normalization was from what the formula says, at most."""

    mean: float = 0.0
    std: float = 0.0

    def look(self, layer: NormLayer, x: Tensor) -> None:
        """Take in what the layer makes of `x`."""
        var = chunk_moments(x)[1]
        mean, normalized = chunk_moments(_before_affine(layer, x))
        expected = var.sqrt() / deviation(var, layer.eps, layer.eps_outside)
        self.mean = max(self.mean, mean.abs().max().item())
        self.std = max(self.std, (normalized.sqrt() - expected).abs().max().item())


def _dead(hidden: list[_Hidden]) -> Iterator[Reading]:
    dead = [layer.low == layer.high for layer in hidden]
    for depth, (layer, units) in enumerate(zip(hidden, dead, strict=True), 1):
        yield Reading("dead", units.double().mean().item(), layer.name, depth)
    yield Reading("dead", torch.cat(dead).double().mean().item())


def _shown(layers: int) -> set[int]:
    """Return which of so many hidden layers have bands."""
    return {0, layers // 2, layers - 1}


def _watched(at: Moment) -> tuple[list[_Hidden], dict[str, _Off]]:
    """Let the probe samples through a copy; return its hidden layers in order of execution, and its normalizations."""
    model = at.copy()
    hidden: list[_Hidden] = []
    normalized = {name: _Off() for name, _ in norm_layers(model)}
    place = 0  # of the next hidden layer in this pass; a module that is called again is another layer

    def enter(name: str, x: Tensor, y: Tensor) -> None:
        nonlocal place
        low, high = y.amin(batch_axes(y)), y.amax(batch_axes(y))
        if place == len(hidden):
            units = torch.randperm(x.shape[1], generator=generator(0, "probes", place))[:UNITS].sort().values
            hidden.append(_Hidden(name, units, low, high))
        layer = hidden[place]
        layer.low, layer.high = torch.minimum(layer.low, low), torch.maximum(layer.high, high)
        layer.inputs.append(x[:, layer.units.to(x.device)].transpose(0, 1).flatten(1))
        place += 1

    for name, module in model.named_modules():  # a copy: its hooks may stay
        if isinstance(module, NormLayer):
            module.register_forward_pre_hook(lambda layer, inputs, off=normalized[name]: off.look(layer, inputs[0]))
        elif isinstance(module, NormModule) or type(module) in ACTIVATIONS.values():
            module.register_forward_hook(lambda _, inputs, y, name=name: enter(name, inputs[0], y))
    with torch.no_grad(), at.precision(), training_statistics(model) as start_again:
        for images, _ in at.samples(SAMPLES):
            start_again()
            place = 0
            model(images)
            for depth in set(range(len(hidden))) - _shown(len(hidden)):
                hidden[depth].inputs.clear()
    return hidden, normalized


def _before_affine(layer: NormLayer, x: Tensor) -> Tensor:
    """Return what the layer makes of `x` before gamma and beta; the layer stays as it is."""
    bare = copy.deepcopy(layer)
    bare.weight = bare.bias = None
    return bare.normalized(x)
