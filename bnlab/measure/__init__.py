"""Measures of a model: what tells training mode from evaluation mode, on any torch model with normalization layers.

Read `probe_model.py` first: it calls the others, from the gap (`discrepancy.py`) to its causes (`decomposition.py`).
Every function leaves the model as it was: buffers, modes, hooks and random states, also when something is raised. A
model of one's own, with its images as uint8 of shape (N, C, H, W) and their labels:

    >>> import torch
    >>> from torch import nn
    >>> from bnlab.data.batches import Batches
    >>> from bnlab.data.bundle import Split
    >>> from bnlab.measure import Probe, plan, running_layers, verdict
    >>> from bnlab.measure import population_statistics, probe_model
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
    >>> (gap,) = probing.decompositions
    >>> total = sum(term.loss.value for term in gap.terms)
    >>> abs(total - gap.total.loss.value) < 1e-9
    True
    >>> max(gap.terms, key=lambda term: term.moved).name
    'initial statistics'
    >>> "on test" in verdict(probing)
    True

What the running statistics stand for, layer after layer, and a model that has them:

    >>> layers = running_layers(net)
    >>> mean, var = population(net, plan(net, dict.fromkeys(layers), training_set))[layers[0]]
    >>> tuple(mean.shape), net[1].num_batches_tracked.item()
    ((8,), 0)
"""

from __future__ import annotations

from bnlab.interval import Interval
from bnlab.measure.by_layer import LayerGap, layer_gaps
from bnlab.measure.decomposition import Decomposition, Term, decompose, levels, stages
from bnlab.measure.layer_statistics import normalizations, running_layers
from bnlab.measure.modes import evaluating, preserved, training_statistics
from bnlab.measure.population_statistics import adopted, mixed_with_batch, plan, population, precise
from bnlab.measure.probe_batches import Probe, probe_indices
from bnlab.measure.probe_model import ProbeResult, probe
from bnlab.measure.recalibration import recalibrated
from bnlab.measure.verdict import verdict

__all__ = [
    "Decomposition",
    "Interval",
    "LayerGap",
    "Probe",
    "ProbeResult",
    "Term",
    "adopted",
    "decompose",
    "evaluating",
    "layer_gaps",
    "levels",
    "mixed_with_batch",
    "normalizations",
    "plan",
    "population",
    "precise",
    "preserved",
    "probe",
    "probe_indices",
    "recalibrated",
    "running_layers",
    "stages",
    "training_statistics",
    "verdict",
]
