"""What of a model of others cannot be measured layer by layer, found by a few forward passes; the model comes back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bnlab.measure.layer_statistics import adopt, kept, normalizations, statistics_of
from bnlab.measure.modes import contents_of, evaluating, learners, preserved, restored
from bnlab.measure.population_statistics import hooked
from bnlab.norms.formula import count_per_channel
from bnlab.norms.running import RunningLayer

NAMED = 3  # layers that a sentence names, then a count
FEWEST = 16  # values a channel that tell what a layer averages
OFF_OF_TORCH, OFF = (0.05, 1.25), (0.25, 1.6)  # means, in deviations, and a factor of deviations: more is another thing


@torch.no_grad()
def unseen(model: nn.Module, images: Tensor) -> tuple[list[str], str]:
    """Return in words, each with the layers: normalizations that are never called, as where a function reads their
    buffers; tensors that evaluation changes; tensors that training changes and no known layer keeps; and whether
    evaluation is random or depends on the gradient mode. The last of these layers, in words too, come by themselves:
    they are not read. `images` is a batch of two or more.
    """
    known, called, said, unread = normalizations(model), set(), [], ""
    with preserved(model), evaluating(model):
        before = _held(model)
        with hooked(known.values(), lambda layer, x: called.add(layer)):
            plain = model(images)
        if passed_by := [name for name, layer in known.items() if layer not in called]:
            said.append(f"never called, so nothing of it is measured: {_listed(passed_by, model)}")
        moved, again = _changed(before, model), model(images)
        moved = [] if torch.equal(again, plain) else moved  # such as what a module remembers of its last images
        if moved:
            said.append(
                f"changes in evaluation, which then depends on what was evaluated before: {_listed(moved, model)}"
            )
        is_random = differ(again, plain)
        with torch.enable_grad():
            tracked = model(images).detach()
        if not moved and is_random:
            said.append("evaluation is random: the same images come out otherwise each time")
        elif not moved and differ(tracked, plain):
            said.append("evaluation depends on torch.is_grad_enabled(): it is measured without gradients")
    with preserved(model), suppress(Exception):
        before = _held(model)
        with restored(model), torch.enable_grad():
            model.train()
            model(images)
            foreign = [name for name in _changed(before, model) if name not in known and name not in moved]
        with evaluating(model):
            is_read = not torch.equal(model(images), plain)
        if foreign and is_read:
            unread = _listed(foreign, model)
            said.append(f"keeps something in training that bnlab does not read: {unread}")
    return said, unread


@torch.no_grad()
def comes_back(model: nn.Module, images: Tensor) -> bool:
    """Return whether evaluation is what it was after a pass in training mode of which all that can be is put back."""
    with evaluating(model):
        before, again = model(images), model(images)
        with preserved(model), suppress(Exception):
            model.train()
            model(images)
        return not torch.equal(before, again) or torch.equal(model(images), before)


@torch.no_grad()
def misread(model: nn.Module, images: Tensor) -> tuple[str, str] | None:
    """Return a layer whose running statistics are no average of mean and variance of its input, over all axes but 1,
    and how far they are off; None: there is none. A layer is given its input twice, with other statistics in it: what
    is left of their difference tells its momentum, and so what it averages.
    """
    found: dict[nn.Module, str] = {}
    layers = [each for each in learners(model) if not isinstance(each, RunningLayer)]

    def look(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if layer not in found:  # at its first call, so that no input has to be kept
            found[layer] = _off(layer, inputs, named)

    with preserved(model), ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(look, with_kwargs=True).remove)
        model.train()
        model(images)
    names = {layer: name for name, layer in model.named_modules()}
    return next(((f"{names[each]} ({type(each).__name__})", off) for each, off in found.items() if off), None)


def _off(layer: Any, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    x = (*inputs, *named.values())[0]
    if layer.running_mean.dtype not in (torch.float32, torch.float64) or count_per_channel(x) < FEWEST:
        return ""
    mean, var = statistics_of(layer, x)
    scale = (var + 1e-5).sqrt()
    of_torch = isinstance(layer, _NormBase)
    ends = []
    with restored(layer) as put_back:
        for start in ((mean, var), (mean + scale, var + scale.square())):
            put_back()
            adopt(layer, *start)
            if of_torch:
                layer.momentum = 0.01  # small: pieces of a batch, one after the other, then weigh alike
            layer.forward(*inputs, **named)  # without the hooks that made the input what it is
            ends.append(kept(layer))
    taken = 1 - ((ends[1][0] - ends[0][0]) / scale).median()  # the weight of the batch
    if not taken > 1e-4:
        return ""
    own_mean, own_var = ((end - start) / taken for end, start in zip(ends[0], (mean, var), strict=True))
    means = (own_mean / scale).square().mean().sqrt().item()
    deviations = ((own_var + scale.square()).clamp(min=0) / scale.square()).sqrt().median().item()
    most_mean, most_deviation = OFF_OF_TORCH if of_torch else OFF
    if means <= most_mean and 1 / most_deviation <= deviations <= most_deviation:
        return ""
    return f"means off by {means:.2g} deviations, deviations by a factor of {deviations:.2f}"


def differ(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs for the same images differ by more than rounding."""
    return not torch.allclose(one.double(), other.double(), rtol=1e-3, atol=1e-3, equal_nan=True)


def _held(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return copies of the floating parameters and buffers, and of what modules keep in attributes, by module."""
    held: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        _, own = contents_of(module)
        found = (*module._parameters.values(), *module._buffers.values(), *map(torch.as_tensor, own))
        held[name] = [each.detach().clone() for each in found if each is not None and each.is_floating_point()]
    return held


def _changed(before: Mapping[str, Sequence[Tensor]], model: nn.Module) -> list[str]:
    def same(one: Tensor, other: Tensor) -> bool:
        return torch.equal(one.nan_to_num(), other.nan_to_num())

    now = _held(model)
    return [name for name, held in before.items() if len(held) != len(now[name]) or not all(map(same, held, now[name]))]


def _listed(names: Iterable[str], model: nn.Module) -> str:
    modules = dict(model.named_modules())
    each = [f"{name or 'the model'} ({type(modules[name]).__name__})" for name in names]
    return f"{', '.join(each[:NAMED])}{f', … ({len(each):,} in all)' if len(each) > NAMED else ''}"
