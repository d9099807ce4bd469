"""Contexts that let the normalization layers of a model act as in training or evaluation, and put all of it back.

What comes back is bit for bit what was there, also after an exception or an interruption: buffers, modes, momentum and
other plain attributes, hooks, and the random state of torch, numpy and Python.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnlab.measure.layer_statistics import keeps_statistics, learns_from_batches, normalizations, running_layers

_CONTAINERS = (dict, list, deque)
_PLAIN = (bool, int, float, str, type(None), Tensor, np.ndarray, tuple, *_CONTAINERS)
_OF_TORCH = frozenset(vars(nn.Module()))  # names of what every module has
_DROPOUT = {
    getattr(namespace, name)
    for namespace in (F, torch)
    for name in dir(namespace)
    if name.strip("_").endswith(("dropout", "dropout1d", "dropout2d", "dropout3d")) and name[0] not in "_n"
}
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Leave `model` and the random states as they were; parameters are expected not to be written to."""
    restore = [remember(module) for module in model.modules() for remember in (_memory_of, _hooks_of)]
    with _random_states():
        try:
            yield
        finally:
            for put_back in restore:
                put_back()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def left_out(model: nn.Module) -> Iterator[None]:
    """Let every normalization layer return its input as it is."""
    with ExitStack() as stack:
        for layer in normalizations(model).values():
            stack.callback(layer.register_forward_hook(lambda _, inputs, __: inputs[0]).remove)
        yield


@contextmanager
def restored(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Bring back the buffers and plain attributes of the normalization layers; the function given does so at once."""
    memories = [_memory_of(layer) for layer in normalizations(model).values()]

    def put_back() -> None:
        for memory in memories:
            memory()

    try:
        yield put_back
    finally:
        put_back()


@contextmanager
def training_statistics(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Let only the normalization layers act as in training; dropout and the rest of the model act as in evaluation.

    Their statistics come back at the end, and at once by the function given: called between batches, it makes each
    batch the next training step after the same past. A layer that the model's own `train` leaves in evaluation stays.
    """
    with evaluating(model), restored(model) as put_back:
        model.train()
        layers = [layer for layer in normalizations(model).values() if layer.training]
        model.eval()

        def start_again() -> None:
            put_back()
            for layer in layers:
                layer.training = True

        start_again()
        yield start_again


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Let torch's dropout drop nothing, as a module, a function or inside attention and recurrent layers.

    Yields the modules of other libraries that are dropout by their name and hold nothing, such as stochastic depth: in
    evaluation mode they drop nothing either.
    """
    rates = [module for module in model.modules() if isinstance(module, (nn.RNNBase, nn.MultiheadAttention))]
    known = [module.dropout for module in rates]
    try:
        for module in rates:
            module.dropout = 0.0
        with _DroppingNothing():
            yield [module for module in model.modules() if _is_dropout(module)]
    finally:
        for module, rate in zip(rates, known, strict=True):
            module.dropout = rate


def _is_dropout(module: nn.Module) -> bool:
    named = "drop" in type(module).__name__.lower() or type(module).__name__ == "StochasticDepth"
    return named and not any(True for _ in module.children()) and not module.state_dict()


class _DroppingNothing(TorchFunctionMode):
    """Returns the input of torch's dropout functions as it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _DROPOUT:
            return args[0] if args else given["input"]
        if func is F.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                given["dropout_p"] = 0.0
        return func(*args, **given)


@contextmanager
def as_training(model: nn.Module) -> Iterator[None]:
    """Let all of the model act as in training; buffers, modes and random states come back."""
    with preserved(model):
        model.train()
        seeded(0)
        yield


@contextmanager
def normalizing_as_evaluation(model: nn.Module) -> Iterator[None]:
    """Let all but the normalization layers act as in training, dropout among it; all that changes comes back."""
    with preserved(model):
        model.train()
        for layer in normalizations(model).values():
            layer.training = False
        yield


def seeded(draw: int) -> None:
    """Let dropout draw what it draws in every pass of that number; inside of `preserved` only.

    So does what a model of others draws from numpy or Python.
    """
    torch.default_generator.manual_seed(draw)
    np.random.seed(draw)
    random.seed(draw)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(draw)


def learners(model: nn.Module) -> list[nn.Module]:
    """Return the layers that average the batches they normalize with, in module order; not those left in evaluation."""
    with evaluating(model):
        model.train()
        return [layer for layer in running_layers(model) if layer.training and learns_from_batches(layer)]


def contents_of(module: nn.Module) -> tuple[list[Any], list[Tensor | np.ndarray[Any, Any]]]:
    """Return the lists, dictionaries and deques that a module keeps of its own, at any depth, and the tensors and
    arrays that are attributes of it or lie in these; weights that are learned are not among them.
    """
    containers: dict[int, Any] = {}
    held: dict[int, Tensor | np.ndarray[Any, Any]] = {}
    waiting = [value for name, value in vars(module).items() if name not in _OF_TORCH]
    while waiting:
        value = waiting.pop()
        if isinstance(value, np.ndarray) or (isinstance(value, Tensor) and not isinstance(value, nn.Parameter)):
            held[id(value)] = value
        elif isinstance(value, (tuple, *_CONTAINERS)) and id(value) not in containers:
            containers[id(value)] = value
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return [each for each in containers.values() if not isinstance(each, tuple)], list(held.values())


def _memory_of(module: nn.Module) -> Callable[[], None]:
    """Return what puts back a module's buffers (the same tensors, their old values) and plain attributes.

    Running statistics are put back whatever they are, and parameters without a gradient: some norms keep theirs there.
    """
    buffers: dict[str, Tensor | None] = dict(module._buffers)
    statistics = [module.running_mean, module.running_var] if keeps_statistics(module) else []
    frozen = [each for each in module.parameters(recurse=False) if not each.requires_grad]
    plain = _plain(module)
    containers, inside = contents_of(module)
    contents = [(each, each.copy()) for each in containers]
    tensors = [each for each in (*buffers.values(), *statistics, *frozen, *inside) if isinstance(each, Tensor)]
    values = {each: each.detach().clone() for each in tensors if _can_be_written(each)}
    arrays = [(each, each.copy()) for each in inside if isinstance(each, np.ndarray) and each.flags.writeable]

    def put_back() -> None:
        module._buffers.clear()
        module._buffers.update(buffers)
        with torch.no_grad():
            for each, value in values.items():
                each.copy_(value)
        for array, content in arrays:
            array[...] = content
        for container, content in contents:
            container.clear()
            (container.update if isinstance(container, dict) else container.extend)(content)
        for name in _plain(module).keys() - plain.keys():
            delattr(module, name)
        vars(module).update(plain)

    return put_back


def _plain(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN) and not (name in _OF_TORCH and isinstance(value, _CONTAINERS))
    }


def _can_be_written(tensor: Tensor) -> bool:
    """Return whether an operation in place may write to it: not to what is expanded, nor to one of inference mode."""
    expanded = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    return not (expanded or tensor.is_inference())


def _hooks_of(module: nn.Module) -> Callable[[], None]:
    """Return what puts back a module's hooks."""
    hooks: dict[str, dict[Any, Any]] = {name: dict(getattr(module, name)) for name in _HOOKS if hasattr(module, name)}

    def put_back() -> None:
        for name, known in hooks.items():
            there = getattr(module, name)
            there.clear()
            there.update(known)

    return put_back


@contextmanager
def _random_states() -> Iterator[None]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    cpu, numbers, python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numbers)
        random.setstate(python)
