"""What a meter is: it looks at a training between two steps and returns figures; a new one is one file beside this.

@meters.register("landscape")
class Landscape(Meter):
    \"\"\"How much loss and gradient change along a step.\"\"\"    # the line that `bnlab list meters` prints

    def read(self, at: Moment) -> Iterable[Reading]:
        model = at.copy()                                     # to do anything with
        loss, gradient = at.gradient(model)
        yield Reading("loss", loss)

Readings without a layer and an axis are of the whole network: `show` draws them over training, and metrics are made of
them (`bnlab/mechanism.py`). All readings are rows of meters.csv.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bnlab.data.batches import Batches
from bnlab.measure.modes import training_statistics
from bnlab.norms.ghost import ghost_sizes
from bnlab.norms.strategy import Strategy
from bnlab.registry import Registry
from bnlab.seeding import generator

WHOLE = "-"  # in place of a layer or an axis: of the whole network
ALWAYS = ("gap", "probe")  # what `measure` asks for and evaluations themselves take
Batch = tuple[Tensor, Tensor]  # images and labels
Gradient = list[Tensor]  # of each parameter, in the order of `model.parameters()`


@dataclass(frozen=True)
class Reading:
    """One figure at one moment; `depth` counts layers from 1 on in order of execution, `axis` is such as `unit 3`."""

    figure: str
    value: float
    layer: str = WHOLE
    depth: int = 0
    axis: str = WHOLE


@dataclass(frozen=True)
class Moment:
    """A training between two steps: its weights, and the batch and learning rate of the step to come.

    Layers whose strategy refreshes its statistics before every step have those of that step; statistics of the training
    set stand still while a meter moves the weights.
    """

    step: int  # steps done
    rate: float
    batch: Batch
    training_set: Batches
    batch_size: int  # that the norm layers take their statistics from
    loss_of: Callable[[Tensor, Tensor], Tensor]  # mean loss of logits and labels
    precision: Callable[[], AbstractContextManager[object]]  # in which training runs its forward pass
    _model: nn.Module
    _optimizer: torch.optim.Optimizer
    micro_batch: int | None = None  # so many samples go through the model at a time; None: the whole batch

    def copy(self) -> nn.Module:
        """Return a copy of the model, in training mode."""
        return copy.deepcopy(self._model).train()

    def copy_with_optimizer(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return copies of the model, in training mode, and of its optimizer, at the learning rate of the step."""
        model, optimizer = copy.deepcopy((self._model, self._optimizer))
        for group in optimizer.param_groups:
            group["lr"] = self.rate * group.get("factor", 1.0)  # as `set_rate` of the training has it
        return model.train(), optimizer

    def samples(self, number: int) -> Iterator[Batch]:
        """Yield fixed training samples, the same at every moment, in batches of `batch_size`, not augmented.

        Whole batches, as many as `number` samples or the training set have; at least one.
        """
        size = min(self.batch_size, len(self.training_set))
        whole = max(1, min(number, len(self.training_set)) // size) * size
        order = torch.randperm(len(self.training_set), generator=generator(0, "probes"))[:whole]
        yield from self.training_set.in_order(order, size)

    def gradient(self, model: nn.Module, batch: Batch | None = None) -> tuple[float, Gradient]:
        """Return loss and gradient of a batch, by default the one to come, as the next step of `model` has them.

        Of a step that takes its batch in parts, the mean over the parts by their shares.
        """
        images, labels = batch or self.batch
        sizes = [len(labels)] if self.micro_batch is None else ghost_sizes(len(labels), self.micro_batch)
        parts = zip(images.split(sizes), labels.split(sizes), [size / len(labels) for size in sizes], strict=True)
        with self.precision():
            found = [(share, *gradient_of(model, (some, its), self.loss_of)) for some, its, share in parts]
        if len(found) == 1:
            return found[0][1:]
        loss = sum(share * part for share, part, _ in found)
        shares = [[share * part for part in gradient] for share, _, gradient in found]
        return loss, [torch.stack(each).sum(0) for each in zip(*shares, strict=True)]


class Meter(ABC):
    """One meter of one run; what it remembers from reading to reading is its `memory`, which a checkpoint keeps."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.memory: dict[str, Any] = {}  # tensors and plain values

    @staticmethod
    def why_not(strategies: Sequence[Strategy]) -> str | None:
        """Return why this meter cannot be read of a model with these strategies; None: it can."""
        return None

    @abstractmethod
    def read(self, at: Moment) -> Iterable[Reading]:
        """Return what it reads now; changes nothing but copies. Random numbers come from generators of its own."""


meters: Registry[Meter] = Registry("measure", "bnlab.meters")


def no_whole_gradient(strategies: Sequence[Strategy]) -> str | None:
    """Return whose gradient is only in part that of the backward pass; None where it is all of it."""
    through = [strategy.name for strategy in strategies if getattr(strategy, "through", False)]
    return f"part of the gradient of norm={through[0]} comes through the whole training set" if through else None


def gradient_of(model: nn.Module, batch: Batch, loss_of: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, Gradient]:
    """Return the loss of a batch and its gradient; 0 for parameters that it does not depend on or are not trained.

    The normalization layers act as in training and are left as they were; dropout drops nothing.
    """
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    with training_statistics(model), torch.enable_grad():
        loss = loss_of(model(batch[0]), batch[1])
        parts = torch.autograd.grad(loss, trained, allow_unused=True)
    found = dict(zip(map(id, trained), parts, strict=True))
    gradients = [found.get(id(weight)) for weight in weights]
    pairs = zip(weights, gradients, strict=True)
    return loss.item(), [torch.zeros_like(w) if gradient is None else gradient for w, gradient in pairs]


def norm(gradient: Iterable[Tensor]) -> float:
    """Return the Euclidean norm over all tensors, added up in float64."""
    return torch.stack([part.detach().double().square().sum() for part in gradient]).sum().sqrt().item()


def difference(one: Gradient, other: Gradient) -> Gradient:
    """Return one - other."""
    return [a - b for a, b in zip(one, other, strict=True)]


def cosine(one: Gradient, other: Gradient) -> float:
    """Return the cosine of the angle between two gradients; nan where one of them is 0."""
    product = sum((a.double() * b.double()).sum().item() for a, b in zip(one, other, strict=True))
    return ratio(product, norm(one) * norm(other))


def ratio(of: float, over: float) -> float:
    """Return `of` / `over`; nan over 0."""
    return of / over if over else math.nan


@torch.no_grad()
def put(weights: Gradient, model: nn.Module) -> None:
    """Put `weights` in place of the parameters of a copy."""
    for weight, new in zip(model.parameters(), weights, strict=True):
        weight.copy_(new)


def parameters_by_layer(model: nn.Module) -> dict[str, list[int]]:
    """Return, by name of each linear or convolutional layer, the places of its parameters in `model.parameters()`.

    In module order, which is that of execution in bnlab's models; gamma and beta of a norm go with the layer before it.
    """
    places = {id(weight): place for place, weight in enumerate(model.parameters())}
    layers: dict[str, list[int]] = {}
    early: list[int] = []  # of a norm before the first layer
    for name, module in model.named_modules():
        own = [places[id(weight)] for weight in module.parameters(recurse=False)]
        if isinstance(module, (nn.Linear, _ConvNd)):
            layers[name] = early + own
            early = []
        elif layers:
            layers[next(reversed(layers))] += own
        else:
            early += own
    return layers
