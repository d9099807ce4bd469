"""The meters of one run: when they are read, in what order, and what they came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.measure.modes import preserved
from bnlab.measure.population_statistics import adopted
from bnlab.measure.refresh import refreshed
from bnlab.meters.meter import WHOLE, Batch, Moment, Reading, meters
from bnlab.norms.strategy import Strategy
from bnlab.timing import Stopwatch

ALWAYS = ("gap", "probe")  # what evaluations measure themselves


@dataclass(frozen=True)
class Taken:
    """What one meter read at one moment."""

    meter: str
    readings: list[Reading]
    seconds: float

    def rows(self) -> list[tuple[str | int | float, ...]]:
        """Return the rows of meters.csv without their step."""
        return [(self.meter, r.figure, r.layer, r.depth, r.axis, r.value) for r in self.readings]

    def of_network(self) -> dict[str, float]:
        """Return the figures of the whole network."""
        return {r.figure: r.value for r in self.readings if r.layer == r.axis == WHOLE}


class Panel:
    """Reads the meters called `names`, at evaluations or after every `every` steps; those that cannot say why."""

    def __init__(
        self,
        names: Sequence[str],
        every: int | None,
        strategies: Sequence[Strategy],
        model: nn.Module,
        training_set: Batches,
        batch_size: int,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        precision: Callable[[], AbstractContextManager[object]],
        micro_batch: int | None = None,
    ) -> None:
        self._every, self._model, self._training_set = every, model, training_set
        self._batch_size, self._optimizer = batch_size, optimizer
        self._loss_of, self._precision, self._micro_batch = loss_of, precision, micro_batch
        reasons = {name: meters[name].why_not(strategies) for name in names}
        self.absent = {name: reason for name, reason in reasons.items() if reason is not None}
        self._meters = {name: meters[name]() for name in names if name not in self.absent}
        self._last = -1  # the step of the last reading

    def reads_after(self, step: int) -> bool:
        """Return whether to read after `step` steps wherever evaluations are."""
        return bool(self._meters) and self._every is not None and step % self._every == 0

    def is_due(self, step: int, evaluated: int, total: int) -> bool:
        """Return whether to read after `step` steps, the last evaluation having been after `evaluated`."""
        if not self._meters or step == self._last:
            return False
        return step == evaluated if self._every is None else self.reads_after(step) or step == total

    def read(self, step: int, rate: float, batches: Batches) -> list[Taken]:
        """Read every meter; model, optimizer and random states stay as they are."""
        taken = []
        with preserved(self._model), self._with_statistics():
            at = Moment(
                step=step,
                rate=rate,
                batch=_batch_of(batches, step),
                training_set=self._training_set,
                batch_size=self._batch_size,
                loss_of=self._loss_of,
                precision=self._precision,
                micro_batch=self._micro_batch,
                _model=self._model,
                _optimizer=self._optimizer,
            )
            for name, meter in self._meters.items():
                watch = Stopwatch(self._training_set.device)
                watch.start()
                readings = list(meter.read(at))
                watch.stop()
                taken.append(Taken(name, readings, watch.seconds))
        self._last = step
        return taken

    def _with_statistics(self) -> AbstractContextManager[None]:
        """Return the context in which the layers have what their strategy takes before the next step."""
        fresh = refreshed(self._model, self._training_set)
        return adopted(self._model, {layer: both for layer, both in fresh.items() if layer.refresh_every == 1})

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"last": self._last, "memories": {name: meter.memory for name, meter in self._meters.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._last = state["last"]
        for name, memory in state["memories"].items():
            self._meters[name].memory = memory


def _batch_of(batches: Batches, step: int) -> Batch:
    """Return the batch of a step, counted from 0."""
    return next(batches.epoch(*divmod(step, batches.steps_per_epoch)))
