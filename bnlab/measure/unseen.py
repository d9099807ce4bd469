"""What of a model of others cannot be measured layer by layer, found by a few forward passes; the model comes back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from bnlab.measure.layer_statistics import normalizations
from bnlab.measure.modes import evaluating, preserved
from bnlab.measure.population_statistics import hooked

NAMED = 3  # layers that a sentence names, then a count


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
        if moved := _changed(before, model):
            said.append(
                f"changes in evaluation, which then depends on what was evaluated before: {_listed(moved, model)}"
            )
        is_random = differ(model(images), plain)
        with torch.enable_grad():
            tracked = model(images).detach()
        if not moved and is_random:
            said.append("evaluation is random: the same images come out otherwise each time")
        elif not moved and differ(tracked, plain):
            said.append("evaluation depends on torch.is_grad_enabled(): it is measured without gradients")
    with preserved(model), suppress(Exception), torch.enable_grad():
        model.train()
        before = _held(model)
        model(images)
        foreign = [name for name in _changed(before, model) if name not in known]
        if foreign := [name for name in foreign if name not in moved]:
            unread = _listed(foreign, model)
            said.append(f"keeps something in training that bnlab does not read: {unread}")
    return said, unread


def differ(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs for the same images differ by more than rounding."""
    return not torch.allclose(one.double(), other.double(), rtol=1e-3, atol=1e-3, equal_nan=True)


def _held(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return copies of the floating parameters and buffers, and of tensors that are plain attributes, by module."""
    return {
        name: {
            key: held.detach().clone()
            for key, held in (*module._parameters.items(), *module._buffers.items(), *vars(module).items())
            if isinstance(held, Tensor) and held.is_floating_point()
        }
        for name, module in model.named_modules()
    }


def _changed(before: Mapping[str, Mapping[str, Tensor]], model: nn.Module) -> list[str]:
    now = _held(model)
    return [
        name
        for name, held in before.items()
        if any(not torch.equal(value.nan_to_num(), now[name][key].nan_to_num()) for key, value in held.items())
    ]


def _listed(names: Iterable[str], model: nn.Module) -> str:
    modules = dict(model.named_modules())
    each = [f"{name or 'the model'} ({type(modules[name]).__name__})" for name in names]
    return f"{', '.join(each[:NAMED])}{f', … ({len(each):,} in all)' if len(each) > NAMED else ''}"
