"""Statistics of the training set, put into the layers that read it, while a model is trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.measure.adjoint import add_gradient
from bnlab.measure.layer_statistics import Statistics, adopt
from bnlab.measure.population_statistics import StatisticsPlan, Takers, adopted, plan, population
from bnlab.norms.running import RunningLayer
from bnlab.timing import step_clock


class Refresh:
    """Keeps the layers of a model that read the training set supplied with its statistics.

    A layer says by `refresh_every` how often. Layers of another strategy in front of one are taken at the statistics of
    the training set too, which is what theirs are on average in training; afterwards they get their own back.
    """

    def __init__(
        self,
        model: nn.Module,
        training_set: Batches,
        precision: Callable[[], AbstractContextManager[object]],
        device: torch.device,
    ) -> None:
        self._model, self._images, self._precision = model, training_set, precision
        self._layers = [layer for layer in bnlab_layers(model) if layer.refresh_every is not None]
        self._others = [layer for layer in bnlab_layers(model) if layer.refresh_every is None]
        self._through = [layer for layer in self._layers if layer.gradient_through]
        self._beside: Statistics = {}  # what those had when the statistics were last taken
        self._plans: dict[tuple[nn.Module, ...], StatisticsPlan] = {}
        self._clock = step_clock(device)

    @staticmethod
    def needed_by(model: nn.Module) -> bool:
        """Return whether any layer of `model` reads the training set."""
        return any(layer.refresh_every is not None for layer in bnlab_layers(model))

    def flush(self) -> list[float]:
        """Return the milliseconds of each refresh inside a step since the last call; may wait for the device."""
        return [refresh for _, refresh in self._clock.flush()]

    def begin(self) -> None:
        """Put statistics into every layer that reads the training set, under the initial weights."""
        self._take(self._layers)

    def state(self) -> list[tuple[int, Tensor, Tensor]]:
        """Return what a checkpoint needs beside the model's own buffers; plain values for `restore`."""
        return [(i, *self._beside[layer]) for i, layer in enumerate(self._others) if layer in self._beside]

    def restore(self, state: list[tuple[int, Tensor, Tensor]]) -> None:
        """Go on in place of `begin` from what `state` returned."""
        self._beside = {self._others[i]: (mean, var) for i, mean, var in state}

    def before_step(self, step: int) -> None:
        """Refresh what is due before step `step`, counted from 0; `begin` has done it for the first."""
        due = [layer for layer in self._layers if step and layer.refresh_every and step % layer.refresh_every == 0]
        if due:
            self._clock.begin()
            self._clock.ready()
            self._take(due)
            self._clock.end()
        for layer in self._through:
            mean, var = layer.running_mean.clone(), layer.running_var.clone()
            layer.leaves = (mean.requires_grad_(), var.requires_grad_())

    def after_backward(self) -> None:
        """Add to the gradients what reaches the weights through the statistics."""
        if not self._through:
            return
        try:
            with self._precision(), adopted(self._model, self._beside):
                add_gradient(self._model, self._plan(self._through))
        finally:
            for layer in self._through:
                layer.leaves = None

    def end(self) -> None:
        """Put in the statistics of the final weights, those that evaluation has; no step follows."""
        with self._precision():
            for layer, statistics in refreshed(self._model, self._images).items():
                adopt(layer, *statistics)

    def _take(self, due: list[RunningLayer]) -> None:
        with self._precision():
            taken = population(self._model, self._plan(self._others + due))
        self._beside = {layer: taken.pop(layer) for layer in self._others if layer in taken}
        for layer, statistics in taken.items():
            adopt(layer, *statistics)

    def _plan(self, layers: list[RunningLayer]) -> StatisticsPlan:
        """Return the plan for `layers`, made once."""
        if (key := tuple(layers)) not in self._plans:
            takers: Takers = {layer: layer.refresh_samples for layer in layers}
            self._plans[key] = plan(self._model, takers, self._images)
        return self._plans[key]


def bnlab_layers(model: nn.Module) -> list[RunningLayer]:
    """Return bnlab's own layers with running statistics, in module order."""
    return [module for module in model.modules() if isinstance(module, RunningLayer)]


def refreshed(model: nn.Module, training_set: Batches) -> Statistics:
    """Return the statistics, under the current weights, of the layers that evaluation takes theirs anew of.

    The other layers normalize as they evaluate.
    """
    takers: Takers = {layer: layer.refresh_samples for layer in bnlab_layers(model) if layer.evaluated_anew}
    return population(model, plan(model, takers, training_set)) if takers else {}
