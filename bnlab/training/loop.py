"""The training loop: the only place with `backward()` and `step()`, the same for every strategy, device and model.

A step is: batch on the device, forward, backward, optimizer. Losses stay on the device until an interval is over; then
one transfer brings them to the host and the rows are written. Evaluation and recording stop the clock.

With `trainer.accumulate` forward and backward go part by part of the batch, each loss weighted by its share, so that
the gradients add up to that of the mean over the batch. A normalization layer sees one part at a time.

Several workers each take their part of a batch; `DistributedDataParallel` averages the gradients. A worker's loss is
weighted by its share of the batch, so that the average is the gradient of the mean over the whole batch. Buffers are
not exchanged: each worker keeps its own running statistics, and those of the first are recorded. All workers evaluate,
and all take every decision on figures that they have averaged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from bnlab.data.batches import Batches
from bnlab.distributed import ALONE, Workers, unsynced
from bnlab.errors import RecordError
from bnlab.measure.refresh import Refresh
from bnlab.meters.panel import Panel
from bnlab.models.model import norm_layers
from bnlab.norms.formula import widened
from bnlab.norms.ghost import ghost_sizes
from bnlab.norms.strategy import NormLayer
from bnlab.timing import Stopwatch, step_clock
from bnlab.training.callbacks import Callback
from bnlab.training.evaluation import LAYER_FIGURES, Evaluator, Figure, evaluation_steps
from bnlab.training.job import Stop
from bnlab.training.optim import set_rate
from bnlab.training.outcome import WARMUP_STEPS, Outcome, Pace, Recorder
from bnlab.training.trainer import LOST_STEPS, TrainerConfig, forward_of, loss_function

INTERVAL_SECONDS = 0.5  # about how often losses are brought to the host
LONGEST_INTERVAL = 500  # steps
LOST = f"{LOST_STEPS} losses in a row above 3 ln(classes) (trainer.stop_when_lost)"
CHECKPOINT_SECONDS = 10.0  # training time between two checkpoints, at least


def train_step(
    model: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    step: int,
    refresh: Refresh | None = None,
    mark: Callable[[], None] | None = None,
    micro_batch: int | None = None,
    apart: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Do step `step`, counted from 0, and return its loss, a scalar on the device that nobody has waited for.

    `micro_batch`: so many samples go through the model at a time; all parts but the last within `apart`, which keeps
    workers from averaging their gradients. `mark` is called after each forward and each backward pass.
    """
    if refresh is not None:
        refresh.before_step(step)
    share, losses = 1.0, []
    if micro_batch is not None:
        whole = len(labels)
        *before, (images, labels) = micro_batches(images, labels, micro_batch)
        share = len(labels) / whole
        for some_images, some_labels in before:
            with apart():
                losses.append(_gradient(model, loss_of, some_images, some_labels, mark, len(some_labels) / whole))
            if mark is not None:
                mark()
    loss = _gradient(model, loss_of, images, labels, mark, share)
    if refresh is not None:
        refresh.after_backward()
    if mark is not None:
        mark()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack([widened(part) for part in (*losses, loss)]).sum() if losses else loss


def _gradient(
    model: Callable[[Tensor], Tensor],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    mark: Callable[[], None] | None,
    share: float,
) -> Tensor:
    """Add the gradient of a loss, times the share of its samples in the batch; return that loss."""
    loss = loss_of(model(images), labels)
    if share < 1.0:
        loss = loss * share
    if mark is not None:
        mark()
    loss.backward()
    return loss.detach()


def micro_batches(images: Tensor, labels: Tensor, size: int) -> Sequence[tuple[Tensor, Tensor]]:
    """Return a batch in consecutive parts of `size` samples, cut as ghost batches are."""
    sizes = ghost_sizes(len(labels), size)
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


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
        callback: Callback,
        refresh: Refresh | None = None,
        workers: Workers = ALONE,
        stop: Stop | None = None,
        panel: Panel | None = None,
        micro_batch: int | None = None,
        lost_above: float | None = None,
    ) -> None:
        self._panel = panel
        self._stop, self._device = stop or Stop(), device
        self._model, self._batches, self._evaluator = model, batches, evaluator
        self._optimizer, self._rate_of, self._total = optimizer, rate_of, total_steps
        shared = workers.shared(model, device)
        self._forward = forward_of(shared, config, device)
        self._micro_batch, self._apart, self._passes = micro_batch, unsynced(shared), config.accumulate
        self._mean_loss = loss_function(config)
        self._loss_of = self._mean_loss if workers.size == 1 else self._weighted_loss
        self._eval_steps = evaluation_steps(eval_every, batches.steps_per_epoch, total_steps)
        self._recorder, self._callback = recorder, callback
        self._refresh, self._workers, self._lost_above = refresh, workers, lost_above
        self._watch, self._eval_watch = Stopwatch(device), Stopwatch(device)
        self._clock = step_clock(device)
        self._pending: list[Tensor] = []  # losses on the device, since the last flush
        self._interval = 1
        self._pace = Pace()
        self._saved_at = 0.0
        self._evaluated = -1  # the step of the last evaluation
        self._ended = False
        self.outcome = Outcome()

    def run(self, earlier: Mapping[str, Any] | None = None) -> Outcome:
        """Train to the last step, or to that at which it diverges; from the checkpoint `earlier` on, if given.

        Raises KeyboardInterrupt when asked to stop, with a checkpoint saved.
        """
        for _, layer in norm_layers(self._model):
            layer.begin(self._total * self._passes)
        if earlier is None:
            self._begin_refresh()
        else:
            self._restore(earlier)
        if not self._ended:
            self._train()
        return self._finish()

    def _train(self) -> None:
        outcome, total = self.outcome, self._total
        next_eval = next(step for step in itertools.chain([0], self._eval_steps) if step > self._evaluated)
        if next_eval == outcome.steps:  # the initial weights, or an evaluation that was interrupted
            self._evaluate()
            next_eval = next(self._eval_steps, total)
        self._read_meters()
        if outcome.steps == total:
            return self._end()
        self._model.train()
        self._watch.start()
        for images, labels in self._stream(outcome.steps):
            set_rate(self._optimizer, self._rate_of(outcome.steps))
            loss = train_step(
                self._forward,
                self._optimizer,
                self._loss_of,
                images,
                labels,
                outcome.steps,
                self._refresh,
                micro_batch=self._micro_batch,
                apart=self._apart,
            )
            self._pending.append(loss)
            self._clock.end()
            outcome.steps += 1
            at_eval = outcome.steps == next_eval
            at_reading = self._panel is not None and self._panel.reads_after(outcome.steps)
            if at_eval or at_reading or len(self._pending) >= self._interval or self._stop.requested:
                self._watch.stop()
                if not self._flush():
                    return None
                if at_eval:
                    self._evaluate()
                    next_eval = next(self._eval_steps, total)
                self._read_meters()
                if outcome.steps == total:
                    return self._end()
                if self._stop.requested or self._watch.seconds - self._saved_at >= CHECKPOINT_SECONDS:
                    self._save()
                if self._stop.requested:
                    raise KeyboardInterrupt
                self._watch.start()
        return None

    def _begin_refresh(self) -> None:
        """Give the layers that read the training set its statistics."""
        if self._refresh is not None:
            self._watch.start()
            self._refresh.begin()
            self._watch.stop()

    def _end(self) -> None:
        """Put the statistics of the final weights in, and save them."""
        if self._refresh is not None:
            self._refresh.end()
        self._ended = True
        self._save()

    def _stream(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches epoch after epoch from `step` on, marking when each was asked for and when it was there."""
        current, first = divmod(step, self._batches.steps_per_epoch)
        for epoch in itertools.count(current):
            batches = self._batches.epoch(epoch, first if epoch == current else 0)
            while True:
                self._clock.begin()
                batch = next(batches, None)
                if batch is None:
                    self._clock.cancel()
                    break
                self._clock.ready()
                yield batch

    def _flush(self) -> bool:
        """Bring the interval's losses and times to the host and write their rows; False when it diverged."""
        losses: list[float] = self._workers.mean(torch.stack(self._pending).float()).tolist()
        self._pending.clear()
        first = self.outcome.steps - len(losses)
        times = self._clock.flush()
        if self._refresh is not None:
            self._pace.refresh_ms += self._refresh.flush()
        bad = next((i for i, loss in enumerate(losses) if self._is_last(loss)), None)
        if bad is not None:
            losses, times = losses[: bad + 1], times[: bad + 1]
            self.outcome.state, self.outcome.diverged_at = "diverged", first + bad + 1
            self.outcome.steps = first + bad + 1
            at = f"at step {self.outcome.steps}"
            self.outcome.error = f"lost {at}: {LOST}" if math.isfinite(losses[-1]) else f"loss not finite {at}"
        per_epoch = self._batches.steps_per_epoch
        self._recorder.append(
            "steps",
            [
                (step + 1, step // per_epoch, loss, self._rate_of(step), int(math.isfinite(loss)))
                for step, loss in enumerate(losses, first)
            ],
        )
        self._recorder.append(
            "times", [(step + 1, data, ms, int(step < WARMUP_STEPS)) for step, (data, ms) in enumerate(times, first)]
        )
        self._pace.take(first, times, self._batch_size)
        lately = self._workers.mean_number(sum(data + ms for data, ms in times) / len(times))
        self._interval = max(1, min(LONGEST_INTERVAL, int(INTERVAL_SECONDS * 1e3 / max(lately, 1e-6))))
        if bad is None:
            self._callback.advanced(self.outcome.steps, losses[-1], self._pace.images_per_second)
        return bad is None

    def _is_last(self, loss: float) -> bool:
        """Return whether training diverged with a step of this loss.

        A network that begins far off is not lost unless its loss is above the first one, too.
        """
        if not math.isfinite(loss) or self._lost_above is None:
            return not math.isfinite(loss)
        outcome = self.outcome
        outcome.first_loss = loss if outcome.first_loss is None else outcome.first_loss
        outcome.lost_steps = outcome.lost_steps + 1 if loss > max(self._lost_above, outcome.first_loss) else 0
        return outcome.lost_steps == LOST_STEPS

    def _batch_size(self, step: int) -> int:
        """Return the samples of step `step`, counted from 0, of all workers together."""
        return self._batches.sizes[step % self._batches.steps_per_epoch]

    def _weighted_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return this worker's mean loss such that its mean over the workers is the mean over the whole batch."""
        whole = self._batch_size(self.outcome.steps)
        first, end = self._workers.shard(whole)
        return self._mean_loss(logits, labels) * ((end - first) * self._workers.size / whole)

    def _evaluate(self) -> None:
        with self._measuring():
            evaluation = self._evaluator.evaluate(self._model)
        figures = evaluation.figures
        self._evaluated = self.outcome.steps
        step, epoch = self.outcome.steps, self.outcome.steps / self._batches.steps_per_epoch
        self._recorder.append("evals", [(step, epoch, m.split, m.metric, m.value, m.samples) for m in figures])
        self._recorder.append(
            "layers",
            [
                (step, epoch, layer.depth, layer.name, reference, name, getattr(layer, name), layer.channels)
                for reference, layers in evaluation.layers.items()
                for layer in layers
                for name in LAYER_FIGURES
            ],
        )
        self._extend_curve(step, epoch, figures)
        self.outcome.layers.append(evaluation.layers["probe"])
        self.outcome.discrepancy_seconds += evaluation.discrepancy_seconds
        self._callback.evaluated(step, {f"{m.split}.{m.metric}": m.value for m in figures})

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Count the time as that of evaluation; asked to stop, save at the next layer: the model is as it was."""
        self._eval_watch.start()
        listening = register_module_forward_pre_hook(lambda *_: self._stop.check())
        try:
            yield
        except KeyboardInterrupt:
            self._save()
            raise
        finally:
            listening.remove()
        self._eval_watch.stop()

    def _read_meters(self) -> None:
        """Read the meters that are due here."""
        step = self.outcome.steps
        if self._panel is None or not self._panel.is_due(step, self._evaluated, self._total):
            return
        with self._measuring():
            taken = self._panel.read(step, self._rate_of(min(step, self._total - 1)), self._batches)
        epoch = step / self._batches.steps_per_epoch
        for of_meter in taken:
            self._recorder.append("meters", [(step, epoch, *row) for row in of_meter.rows()])
            self.outcome.take_readings(step, of_meter.meter, of_meter.of_network(), of_meter.seconds)

    def _extend_curve(self, step: int, epoch: float, figures: list[Figure]) -> None:
        point = {"step": step, "epoch": epoch, "seconds": self._watch.seconds}
        point |= {f"{m.split}.{m.metric}": m.value for m in figures}
        for name, value in point.items():
            self.outcome.curve.setdefault(name, []).append(value)

    def _save(self) -> None:
        self._saved_at = self._watch.seconds
        self._recorder.checkpoint(self._state())

    def _state(self) -> dict[str, Any]:
        """Return all that the steps to come depend on, and what came of those before."""
        on_cuda = self._device.type == "cuda"
        counts = [layer.num_unnormalizable for layer in self._model.modules() if isinstance(layer, NormLayer)]
        return {
            "step": self.outcome.steps,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self._device) if on_cuda else None,
            "unnormalizable": counts,
            "calibration": None if self._refresh is None else self._refresh.state(),
            "evaluated": self._evaluated,
            "panel": None if self._panel is None else self._panel.state(),
            "ended": self._ended,
            "outcome": self.outcome.as_plain(),
            "seconds": (self._watch.seconds, self._eval_watch.seconds),
            "pace": self._pace.as_plain(),
            "tables": self._recorder.sizes,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `_save` saved: the steps that follow are those that would have followed then."""
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self._device)
        layers = [layer for layer in self._model.modules() if isinstance(layer, NormLayer)]
        for layer, count in zip(layers, state["unnormalizable"], strict=True):
            layer.num_unnormalizable = count
        if self._refresh is not None:
            self._refresh.restore(state["calibration"])
        if self._panel is not None and (panel := state.get("panel")) is not None:  # older checkpoints have none
            self._panel.restore(panel)
        self._evaluated, self._ended = state["evaluated"], state["ended"]
        self.outcome = Outcome.of_plain(state["outcome"])
        if self.outcome.steps > self._total:
            raise RecordError(f"the checkpoint is of step {self.outcome.steps:,}, the run has {self._total:,}")
        for watch, seconds in zip((self._watch, self._eval_watch), state["seconds"], strict=True):
            watch.add(seconds)
        self._saved_at = self._watch.seconds
        self._pace = Pace.of_plain(state["pace"])

    def _finish(self) -> Outcome:
        outcome = self.outcome
        outcome.epochs = outcome.steps / self._batches.steps_per_epoch
        outcome.train_seconds, outcome.eval_seconds = self._watch.seconds, self._eval_watch.seconds
        outcome.pace(self._pace)
        return outcome
