"""The training loop: the only place with `backward()` and `step()`, the same for every strategy, device and model.

A step is: batch on the device, forward, backward, optimizer. Losses stay on the device until an interval is over; then
one transfer brings them to the host and the rows are written. Evaluation and recording stop the clock.

Several workers each take their part of a batch; `DistributedDataParallel` averages the gradients. A worker's loss is
weighted by its share of the batch, so that the average is the gradient of the mean over the whole batch. Buffers are
not exchanged: each worker keeps its own running statistics, and those of the first are recorded. All workers evaluate,
and all take every decision on figures that they have averaged.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bnlab.clock import Stopwatch, step_clock
from bnlab.data import Batches
from bnlab.measure.by_layer import LayerGap
from bnlab.measure.calibration import Calibration
from bnlab.models import norm_layers
from bnlab.record.tables import Cell
from bnlab.training.evaluation import LAYER_FIGURES, Evaluator, Measured, evaluation_steps
from bnlab.training.trainer import TrainerConfig, forward_of, loss_function
from bnlab.watcher import Watcher
from bnlab.workers import ALONE, Workers

WARMUP_STEPS = 10  # kept and marked, but left out of the step-time figures
INTERVAL_SECONDS = 0.5  # about how often losses are brought to the host
LONGEST_INTERVAL = 500  # steps
CHECKPOINT_SECONDS = 10.0  # training time between two checkpoints, at least


class Recorder(Protocol):
    """Where a training leaves its rows."""

    def steps(self, rows: list[tuple[Cell, ...]]) -> None: ...
    def times(self, rows: list[tuple[Cell, ...]]) -> None: ...
    def evals(self, rows: list[tuple[Cell, ...]]) -> None: ...
    def layers(self, rows: list[tuple[Cell, ...]]) -> None: ...
    def checkpoint(self, state: dict[str, Any]) -> None: ...


@dataclass
class Outcome:
    """What came of a training; the curve has one entry an evaluation."""

    state: Literal["done", "diverged"] = "done"
    steps: int = 0
    epochs: float = 0.0
    diverged_at: int | None = None
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    discrepancy_seconds: float = 0.0  # of these for what tells training mode from evaluation mode
    step_ms: dict[str, float] | None = None
    images_per_second: float | None = None
    warmup_seconds: float = 0.0
    refresh_ms: float | None = None  # median of the refreshes of statistics inside steps
    curve: dict[str, list[float]] = field(default_factory=dict)
    layers: list[list[LayerGap]] = field(default_factory=list)  # an entry an evaluation, against the test probe


def train_step(
    model: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    step: int,
    calibration: Calibration | None = None,
    mark: Callable[[], None] | None = None,
) -> Tensor:
    """Do step `step`, counted from 0, and return its loss, a scalar on the device that nobody has waited for.

    `mark` is called between forward and backward, and between backward and optimizer.
    """
    if calibration is not None:
        calibration.before_step(step)
    loss = loss_of(model(images), labels)
    if mark is not None:
        mark()
    loss.backward()
    if calibration is not None:
        calibration.after_backward()
    if mark is not None:
        mark()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


class Training:
    """One training from the first step to the last."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        evaluator: Evaluator,
        optimizer: torch.optim.Optimizer,
        rate_of: Callable[[int], float],
        total_steps: int,
        config: TrainerConfig,
        eval_every: float,
        device: torch.device,
        recorder: Recorder,
        watcher: Watcher,
        calibration: Calibration | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self._model, self._batches, self._evaluator = model, batches, evaluator
        self._optimizer, self._rate_of, self._total = optimizer, rate_of, total_steps
        self._forward = forward_of(workers.shared(model, device), config, device)
        self._mean_loss = loss_function(config)
        self._loss_of = self._mean_loss if workers.size == 1 else self._weighted_loss
        self._eval_steps = evaluation_steps(eval_every, batches.steps_per_epoch, total_steps)
        self._recorder, self._watcher = recorder, watcher
        self._calibration, self._workers = calibration, workers
        self._watch, self._eval_watch = Stopwatch(device), Stopwatch(device)
        self._clock = step_clock(device)
        self._pending: list[Tensor] = []  # losses on the device, since the last flush
        self._interval = 1
        self._step_ms: list[float] = []
        self._refresh_ms: list[float] = []
        self._busy_ms, self._busy_images = 0.0, 0
        self._saved_at = 0.0
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Train to the last step, or to the first whose loss is not finite."""
        outcome, total = self.outcome, self._total
        self._begin()
        self._evaluate()
        self._model.train()
        next_eval = next(self._eval_steps)
        self._watch.start()
        for images, labels in self._stream():
            rate = self._rate_of(outcome.steps)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            loss = train_step(
                self._forward, self._optimizer, self._loss_of, images, labels, outcome.steps, self._calibration
            )
            self._pending.append(loss)
            self._clock.end()
            outcome.steps += 1
            at_eval = outcome.steps == next_eval
            if at_eval or len(self._pending) >= self._interval:
                self._watch.stop()
                if not self._flush():
                    break
                if at_eval:
                    self._evaluate()
                    next_eval = next(self._eval_steps, total)
                if outcome.steps == total and self._calibration is not None:
                    self._calibration.end()
                if outcome.steps == total or self._watch.seconds - self._saved_at >= CHECKPOINT_SECONDS:
                    self._save()
                if outcome.steps == total:
                    break
                self._watch.start()
        return self._finish()

    def _begin(self) -> None:
        """Tell the norm layers how long the run is, and give those that read the training set its statistics."""
        for _, layer in norm_layers(self._model):
            layer.begin(self._total)
        if self._calibration is not None:
            self._watch.start()
            self._calibration.begin()
            self._watch.stop()

    def _stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches epoch after epoch, marking when each was asked for and when it was there."""
        for epoch in itertools.count():
            batches = self._batches.epoch(epoch)
            while True:
                self._clock.begin()
                batch = next(batches, None)
                if batch is None:
                    self._clock.cancel()
                    break
                self._clock.ready()
                yield batch

    def _flush(self) -> bool:
        """Bring the interval's losses and times to the host and write their rows; False when a loss was not finite."""
        losses: list[float] = self._workers.mean(torch.stack(self._pending).float()).tolist()
        self._pending.clear()
        first = self.outcome.steps - len(losses)
        times = self._clock.flush()
        if self._calibration is not None:
            self._refresh_ms += self._calibration.flush()
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            losses, times = losses[: bad + 1], times[: bad + 1]
            self.outcome.state, self.outcome.diverged_at = "diverged", first + bad + 1
            self.outcome.steps = first + bad + 1
        per_epoch = self._batches.steps_per_epoch
        self._recorder.steps(
            [
                (step + 1, step // per_epoch, loss, self._rate_of(step), int(math.isfinite(loss)))
                for step, loss in enumerate(losses, first)
            ]
        )
        self._recorder.times(
            [(step + 1, data, ms, int(step < WARMUP_STEPS)) for step, (data, ms) in enumerate(times, first)]
        )
        self._take_times(first, times)
        if bad is None:
            self._watcher.advanced(self.outcome.steps, losses[-1], self._speed())
        return bad is None

    def _take_times(self, first: int, times: list[tuple[float, float]]) -> None:
        settled = times[max(0, WARMUP_STEPS - first) :]
        warmup = times[: len(times) - len(settled)]
        self.outcome.warmup_seconds += sum(data + ms for data, ms in warmup) / 1e3
        self._step_ms += [ms for _, ms in settled]
        self._busy_ms += sum(data + ms for data, ms in settled)
        self._busy_images += sum(self._batch_size(first + i) for i in range(len(warmup), len(times)))
        lately = self._workers.mean_number(sum(data + ms for data, ms in times) / len(times))
        self._interval = max(1, min(LONGEST_INTERVAL, int(INTERVAL_SECONDS * 1e3 / max(lately, 1e-6))))

    def _batch_size(self, step: int) -> int:
        """Return the samples of step `step`, counted from 0, of all workers together."""
        return self._batches.sizes[step % self._batches.steps_per_epoch]

    def _weighted_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return this worker's mean loss such that its mean over the workers is the mean over the whole batch."""
        whole = self._batch_size(self.outcome.steps)
        return self._mean_loss(logits, labels) * (len(labels) * self._workers.size / whole)

    def _evaluate(self) -> None:
        self._eval_watch.start()
        found = self._evaluator.evaluate(self._model)
        figures = found.figures
        self._eval_watch.stop()
        step, epoch = self.outcome.steps, self.outcome.steps / self._batches.steps_per_epoch
        self._recorder.evals([(step, epoch, m.split, m.metric, m.value, m.samples) for m in figures])
        self._recorder.layers(
            [
                (step, epoch, layer.depth, layer.name, reference, name, getattr(layer, name), layer.channels)
                for reference, layers in found.layers.items()
                for layer in layers
                for name in LAYER_FIGURES
            ]
        )
        self._extend_curve(step, epoch, figures)
        self.outcome.layers.append(found.layers["probe"])
        self.outcome.discrepancy_seconds += found.discrepancy_seconds
        self._watcher.evaluated(step, {f"{m.split}.{m.metric}": m.value for m in figures})

    def _extend_curve(self, step: int, epoch: float, figures: list[Measured]) -> None:
        point = {"step": step, "epoch": epoch, "seconds": self._watch.seconds}
        point |= {f"{m.split}.{m.metric}": m.value for m in figures}
        for name, value in point.items():
            self.outcome.curve.setdefault(name, []).append(value)

    def _save(self) -> None:
        self._saved_at = self._watch.seconds
        self._recorder.checkpoint(
            {
                "step": self.outcome.steps,
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "random": torch.get_rng_state(),
            }
        )

    def _speed(self) -> float:
        return self._busy_images / self._busy_ms * 1e3 if self._busy_ms else 0.0

    def _finish(self) -> Outcome:
        outcome = self.outcome
        outcome.epochs = outcome.steps / self._batches.steps_per_epoch
        outcome.train_seconds, outcome.eval_seconds = self._watch.seconds, self._eval_watch.seconds
        if self._refresh_ms:
            outcome.refresh_ms = statistics.median(self._refresh_ms)
        if len(self._step_ms) > 1:
            cuts = statistics.quantiles(self._step_ms, n=10, method="inclusive")
            outcome.step_ms = {"median": statistics.median(self._step_ms), "p10": cuts[0], "p90": cuts[-1]}
            outcome.images_per_second = self._speed()
        return outcome
