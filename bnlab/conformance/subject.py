"""What a conformance card looks at: a strategy's layer or a user's module, after some training, with random batches.

Everything random comes from fixed generators, so a card is the same on every call. Modules run in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import Field, dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from bnlab.conformance.own_code import described, load_factory, own_code
from bnlab.errors import ConfigError
from bnlab.norms.formula import batch_axes, moments
from bnlab.norms.strategy import Facts, Strategy

CHANNELS = (32, 16, 24, 64, 48, 60, 96, 128, 256)  # the first that the layer accepts
IMAGES, SEQUENCES, VOLUMES = ((4, 3), (5, 5)), ((12,), (5,)), ((2, 3, 2), (3, 2, 2))  # axes behind (N, C)
SEEDS = 2  # of each shape
STEPS = 3  # of training before anything is measured
NO_EPS = 1e-30


@dataclass(frozen=True)
class Subject:
    """A way to make the normalization under test, and what is declared of it."""

    label: str
    make: Callable[[int], nn.Module]  # the layer for a number of channels, with the activation that belongs to it
    facts: Facts | None = None
    transform: Callable[[Tensor], Tensor] | None = None  # of the weights before it
    takes_batch: Callable[[int], bool] = lambda size: True
    without_eps: Callable[[], Subject | None] = lambda: None  # the same with epsilon next to nothing, if it has one
    spaces: tuple[tuple[int, ...], ...] = IMAGES  # of the random batches, beside an input (N, C) where it is defined


def of_strategy(strategy: Strategy) -> Subject:
    """Return the subject of a strategy with its parameters; those that are not the default's stand in its label."""

    def make(channels: int) -> nn.Module:
        layer, activation = strategy.layer(channels), strategy.activation(channels)
        return layer if activation is None else nn.Sequential(layer, activation)

    def takes_batch(size: int) -> bool:
        try:
            strategy.check_batch(size)
        except ConfigError:
            return False
        return True

    changed = [f"{f.name}={_text(getattr(strategy, f.name))}" for f in fields(strategy) if _differs(strategy, f)]
    label = " ".join([strategy.name, *changed])
    return Subject(
        label,
        make,
        strategy.facts,
        strategy.weight_transform,
        takes_batch,
        without_eps=lambda: of_strategy(replace(strategy, eps=NO_EPS)),
        spaces=() if strategy.per_activation else IMAGES,
    )


def _differs(strategy: Strategy, field: Field[Any]) -> bool:
    return bool(getattr(strategy, field.name) != field.default)


def _text(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def of_factory(path: str) -> Subject:
    """Return the subject of `package.module:factory`, a function of the number of channels that returns a module.

    Errors: ConfigError when there is no such module or function, or it makes nothing that normalizes (N, C, H, W),
    (N, C, L), (N, C, D, H, W) or (N, C).
    """
    with own_code(f"--module {path}", "called with a number of channels it"):
        make = _made(load_factory(path))
        spaces = _spaces_of(path, make)
        return of_function(path, _ready(make, next(iter(spaces), ())), spaces)


def of_function(
    label: str, factory: Callable[[int], nn.Module], spaces: tuple[tuple[int, ...], ...] = IMAGES
) -> Subject:
    """Return the subject of a function of the number of channels; nothing is declared of what it makes.

    Its epsilon is whatever its modules hold as attribute `eps`.
    """

    def make(channels: int) -> nn.Module:
        module = factory(channels)
        for part in _with_eps(module):
            part.eps = NO_EPS
        return module

    def without_eps() -> Subject | None:
        return Subject(label, make, spaces=spaces) if _with_eps(factory(accepted_channels(factory))) else None

    return Subject(label, factory, without_eps=without_eps, spaces=spaces)


def _with_eps(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(getattr(part, "eps", None), float)]


def _made(factory: Callable[..., Any]) -> Callable[[int], Any]:
    """Return what makes a module for a number of channels; torch's lazy classes take none, and learn it when called."""
    if isinstance(factory, type) and issubclass(factory, LazyModuleMixin):
        return lambda channels: factory()
    return factory


def _ready(make: Callable[[int], nn.Module], space: tuple[int, ...]) -> Callable[[int], nn.Module]:
    """Return `make` with modules that shape themselves by their first input already shaped."""

    def made(channels: int) -> nn.Module:
        module = make(channels)
        if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
            module.eval()(torch.zeros(2, channels, *space))
        return module.train()

    return made


def _spaces_of(path: str, make: Callable[[int], Any]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the first kind of input that the module takes: images, sequences, volumes or vectors."""
    try:
        channels = accepted_channels(make)
        module = make(channels)
    except Exception as error:
        raise ConfigError(
            f"--module {path}: called with {CHANNELS[0]} channels it fails: {described(error)}\n"
            "give a function (or a class) that takes the number of channels, as make_norm(channels)"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"--module {path}: must return a torch.nn.Module, not {type(module).__name__}\n"
            "give a function (or a class) that takes the number of channels"
        )
    refusals = []
    for spaces in (IMAGES, SEQUENCES, VOLUMES, ()):
        x = torch.randn(8, channels, *next(iter(spaces), ()), generator=torch.Generator().manual_seed(0))
        try:
            y = make(channels).train()(x)
        except Exception as error:
            refusals.append(f"fails on an input {tuple(x.shape)}: {described(error)}")
            continue
        if not isinstance(y, Tensor) or y.shape != x.shape:
            what = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            refusals.append(f"must return the shape of its input {tuple(x.shape)}, not {what}")
            continue
        return spaces
    raise ConfigError(
        f"--module {path}: {refusals[0]}\n(N, C), (N, C, L) and (N, C, D, H, W) were tried too; "
        "give a function of the number of channels"
    )


def accepted_channels(make: Callable[[int], Any]) -> int:
    """Return the first number of channels that `make` takes; groups, for one, must divide it."""
    refusal: Exception | None = None
    for channels in CHANNELS:
        try:
            make(channels)
        except Exception as error:
            refusal = refusal or error
        else:
            return channels
    assert refusal is not None
    raise refusal


@dataclass(frozen=True)
class Trial:
    """A trained module and one batch, from one seed; every call works on a copy, so none sees another's traces."""

    subject: Subject
    trained: nn.Module
    x: Tensor
    seed: int

    def copy(self, statistics_of: Tensor | None = None) -> nn.Module:
        """Return a copy of the module; where it reads the training set, that is `statistics_of`, by default `x`."""
        module = copy.deepcopy(self.trained)
        facts = self.subject.facts
        if facts is not None and facts.reads_training_set:
            batch = self.x if statistics_of is None else statistics_of
            give_statistics(module, batch)
        return module

    def train(self, x: Tensor, statistics_of: Tensor | None = None) -> Tensor:
        """Return the output of a training step; `x` is the caller's, also where a module works in place."""
        return self.copy(statistics_of).train()(x.clone())  # type: ignore[no-any-return]

    def evaluate(self, x: Tensor) -> Tensor:
        """Return the output of an evaluation."""
        return self.copy().eval()(x.clone())  # type: ignore[no-any-return]

    def random(self, *shape: int, salt: int = 0) -> Tensor:
        """Return standard normal numbers of this trial."""
        draw = torch.Generator().manual_seed(1000 * (self.seed + 1) + salt)
        return torch.randn(shape, generator=draw, dtype=torch.float64)


@torch.no_grad()
def give_statistics(module: nn.Module, x: Tensor) -> bool:
    """Give every layer with statistics those of `x`; return whether there is one."""
    mean, var = moments(x.detach(), batch_axes(x))
    layers = [part for part in module.modules() if isinstance(getattr(part, "running_var", None), Tensor)]
    for layer in layers:
        layer.running_mean.copy_(mean.flatten())  # type: ignore[operator]
        layer.running_var.copy_(var.flatten())  # type: ignore[operator]
    return bool(layers)


class Bench:
    """The subject's modules and batches, made once for all properties."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.facts = subject.facts
        self.channels = accepted_channels(subject.make)
        fitting = (size for size in (4, 8, 16, 32, 64, 128, 256, 512) if subject.takes_batch(size))
        self.full = next(fitting, 1024)  # samples without a remainder: a ghost batch, where there are such
        self.samples = 2 * self.full + 3

    @cached_property
    def trials(self) -> list[Trial]:
        """The trained modules with their batches: each shape that is defined, with each seed."""
        spaces = [*self.subject.spaces, *([()] if self.takes_flat else [])]
        return [self._trial(space, seed) for space in spaces for seed in range(SEEDS)]

    @property
    def spatial(self) -> list[Trial]:
        """The trials with more axes than (N, C)."""
        return [trial for trial in self.trials if trial.x.dim() > 2]

    @cached_property
    def takes_flat(self) -> bool:
        """Whether an input (N, C) is defined: the facts say it, of a module it is tried."""
        if self.facts is not None:
            return not self.facts.needs_space
        try:
            self.subject.make(self.channels).double()(torch.randn(4, self.channels, dtype=torch.float64))
        except Exception:
            return False
        return True

    def _trial(self, space: tuple[int, ...], seed: int) -> Trial:
        draw = torch.Generator().manual_seed(seed + 17 * sum(space))
        module = self.subject.make(self.channels).double()
        _settle(module, [self._batch(space, draw) for _ in range(STEPS)], draw)
        return Trial(self.subject, module, self._batch(space, draw), seed)

    def _batch(self, space: tuple[int, ...], draw: torch.Generator) -> Tensor:
        """Return a batch whose channels and samples differ in level and size."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        ones = (1,) * len(space)
        size = 0.5 + normal(1, self.channels, *ones).abs()
        level = normal(1, self.channels, *ones) + 0.3 * normal(self.samples, 1, *ones)
        return normal(self.samples, self.channels, *space) * size + level


def _settle(module: nn.Module, batches: list[Tensor], draw: torch.Generator) -> None:
    """Move the parameters and take training steps, backward included: some statistics are those of gradients."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in parameters:
            p.add_(0.2 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    module.train()
    for batch in batches:
        x = batch.clone().requires_grad_()
        y = module(x)
        weights = torch.randn(y.shape, generator=draw, dtype=y.dtype)
        gradients = torch.autograd.grad((y * weights).mean(), [x, *parameters], allow_unused=True)[1:]
        with torch.no_grad():
            for p, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    p.sub_(0.1 * gradient)
