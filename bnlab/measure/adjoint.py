"""The exact gradient through statistics of the training set, in memory that does not grow with the set.

In the training step a layer normalizes with leaves, mean and variance, that gather a = dloss/d(mean, var). What
reaches the weights through the statistics is then the gradient of sum_i a_mean_i . mean_i(w) + a_var_i . var_i(w),
where a layer's statistics also depend on those of the layers before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnlab.measure.population_statistics import Reached, StatisticsPlan, hooked, inputs_of
from bnlab.norms.formula import batch_axes, per_channel
from bnlab.norms.running import RunningLayer

Leaves = tuple[Tensor, Tensor]


def add_gradient(model: nn.Module, how: StatisticsPlan) -> None:
    """Add to every parameter's gradient what reaches it through the statistics of the planned layers.

    Their `leaves` hold the statistics of the current weights and, as gradients, what `loss.backward()` left there. The
    gradients are taken by `torch.autograd.grad`, so that no hook of a parameter runs a second time in a step.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    with how.acting(model):
        (_in_one_pass if how.in_one_pass else _layer_by_layer)(model, how, parameters)


def _in_one_pass(model: nn.Module, how: StatisticsPlan, parameters: Sequence[Tensor]) -> None:
    """All samples at once: the layers normalize with the statistics of this very pass, and one backward serves all."""
    leaves = {layer: layer.leaves for layer in _takers(how)}
    terms: list[Tensor] = []

    def take(layer: RunningLayer, x: Tensor) -> None:
        mean, var = _statistics(how.needed(layer, x))
        terms.append(_term(leaves[layer], mean, var))
        layer.leaves = (mean, var)
        if len(terms) == len(leaves):
            raise Reached

    try:
        with hooked(leaves, take):
            model(next(how.batches())[: how.samples])
    except Reached:
        _add(torch.stack(terms).sum(), parameters)
    finally:
        for layer, kept in leaves.items():
            layer.leaves = kept


def _layer_by_layer(model: nn.Module, how: StatisticsPlan, parameters: Sequence[Tensor]) -> None:
    """From the last layer to the first, chunk by chunk: into the weights and into the leaves of earlier layers."""
    order = _takers(how)
    for depth, layer in reversed(list(enumerate(order))):
        assert layer.leaves is not None
        centre = layer.leaves[0].detach()
        before = [leaf for earlier in order[:depth] for leaf in earlier.leaves or ()]
        samples = min(how.takers[layer] or how.samples, how.samples)
        for x in inputs_of(model, layer, how):
            _add(_term(layer.leaves, *_statistics(x, centre)) * (len(x) / samples), [*parameters, *before])


def _takers(how: StatisticsPlan) -> list[RunningLayer]:
    return [layer for layer in how.takers if isinstance(layer, RunningLayer)]


def _term(leaves: Leaves | None, mean: Tensor, var: Tensor) -> Tensor:
    """Return a_mean . mean + a_var . var; a leaf that the loss does not depend on counts as 0."""
    grads = [leaf.grad for leaf in leaves or ()]
    return sum(((g * s).sum() for g, s in zip(grads, (mean, var), strict=True) if g is not None), mean.new_zeros(()))


def _add(term: Tensor, inputs: Sequence[Tensor]) -> None:
    """Add the gradient of `term` to that of `inputs`."""
    if not term.requires_grad:
        return
    for parameter, grad in zip(inputs, torch.autograd.grad(term, inputs, allow_unused=True), strict=True):
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)


def _statistics(x: Tensor, centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and mean square about `centre` (None: the mean) per channel, with their gradient to `x`.

    The variance does not change, to first order, with the point it is taken about when that is the mean.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(batch_axes(x))
    about = mean.detach() if centre is None else centre
    return mean, (wide - per_channel(about, wide)).square().mean(batch_axes(x))
