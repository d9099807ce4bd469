"""Measures of a model: what tells training mode from evaluation mode, on any torch model with normalization layers.

Every function leaves the model as it was: buffers, modes, hooks and random states, also when something is raised. A
model of one's own, with its images as uint8 of shape (N, C, H, W) and their labels:

    >>> import torch
    >>> from torch import nn
    >>> from bnlab.data import Batches, Split
    >>> from bnlab.measure import Probe, population, plan, probe, running_layers, verdict
    >>> draw = torch.Generator().manual_seed(0)
    >>> images = torch.randint(0, 256, (512, 3, 8, 8), dtype=torch.uint8, generator=draw)
    >>> labels = torch.randint(0, 10, (512,), generator=draw)
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))

It takes batches on its device, scaled to [0, 1]; of mean and std they are standardized by those:

    >>> training_set = Batches(Split(images, labels), batch_size=32)
    >>> test = Batches(Split(images[:128], labels[:128]), batch_size=32)
    >>> probing = probe(net, [Probe("test", test, None, 32, labels[:128])], training_set, samples=512)
    >>> round(probing.layers[0].initial_left, 3), probing.layers[0].name  # it has seen no training step
    (1.0, '1')
    >>> (found,) = probing.decompositions
    >>> total = sum(term.loss.value for term in found.terms)
    >>> abs(total - found.total.loss.value) < 1e-9
    True
    >>> max(found.terms, key=lambda term: term.moved).name
    'initial statistics'
    >>> "Recalibrate" in verdict(found)
    True

What the running statistics stand for, layer after layer, and a model that has them:

    >>> layers = running_layers(net)
    >>> mean, var = population(net, plan(net, dict.fromkeys(layers), training_set))[layers[0]]
    >>> tuple(mean.shape), net[1].num_batches_tracked.item()
    ((8,), 0)
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlab.measure.by_layer import LayerGap as LayerGap
    from bnlab.measure.by_layer import layer_gaps as layer_gaps
    from bnlab.measure.decomposition import Decomposition as Decomposition
    from bnlab.measure.decomposition import Term as Term
    from bnlab.measure.decomposition import decompose as decompose
    from bnlab.measure.decomposition import levels as levels
    from bnlab.measure.decomposition import stages as stages
    from bnlab.measure.interval import Interval as Interval
    from bnlab.measure.layers import normalizations as normalizations
    from bnlab.measure.layers import running_layers as running_layers
    from bnlab.measure.mates import Probe as Probe
    from bnlab.measure.mates import probe_indices as probe_indices
    from bnlab.measure.modes import evaluating as evaluating
    from bnlab.measure.modes import preserved as preserved
    from bnlab.measure.modes import training_statistics as training_statistics
    from bnlab.measure.population import adopted as adopted
    from bnlab.measure.population import mixed_with_batch as mixed_with_batch
    from bnlab.measure.population import plan as plan
    from bnlab.measure.population import population as population
    from bnlab.measure.population import precise as precise
    from bnlab.measure.probe import Probing as Probing
    from bnlab.measure.probe import probe as probe
    from bnlab.measure.recalibration import recalibrated as recalibrated
    from bnlab.measure.verdict import verdict as verdict

# name -> module; imported when first asked for, since `bnlab.measure.metrics` is read where torch must not be
_HOMES = {
    "Decomposition": "decomposition",
    "Interval": "interval",
    "LayerGap": "by_layer",
    "Probe": "mates",
    "Probing": "probe",
    "Term": "decomposition",
    "adopted": "population",
    "decompose": "decomposition",
    "evaluating": "modes",
    "layer_gaps": "by_layer",
    "levels": "decomposition",
    "mixed_with_batch": "population",
    "normalizations": "layers",
    "plan": "population",
    "population": "population",
    "precise": "population",
    "preserved": "modes",
    "probe": "probe",
    "probe_indices": "mates",
    "recalibrated": "recalibration",
    "running_layers": "layers",
    "stages": "decomposition",
    "training_statistics": "modes",
    "verdict": "verdict",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(ModuleType):
    """Three functions have the name of their module; importing a module puts it here, which must not hide them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
