"""One arm of a bench: a model in training, of which one step at a time is taken and timed.

The step is the training loop's own `train_step`, on batches that lie on the device.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnlab.bench.engine import Stepper
from bnlab.bench.pairing import Figures
from bnlab.bench.traffic import Traffic, traffic_of
from bnlab.data.batches import Batches
from bnlab.data.bundle import DataBundle
from bnlab.distributed import ALONE, Workers
from bnlab.errors import IncompatibleError, count_of
from bnlab.experiment.config import Config
from bnlab.experiment.setup import model_of, to_device
from bnlab.measure.layer_statistics import normalizations
from bnlab.measure.modes import evaluating
from bnlab.measure.population_statistics import hooked
from bnlab.measure.refresh import Refresh, bnlab_layers
from bnlab.models.model import norm_layers
from bnlab.timing import PhaseClock, phase_clock
from bnlab.training.loop import train_step
from bnlab.training.optim import set_rate
from bnlab.training.trainer import forward_of, loss_function, precision_of

Batch = tuple[Tensor, Tensor]
Mark = Callable[[], None]
BATCHES = 8  # of the training set, taken in turn
TOTAL_STEPS = 10_000  # that strategies with a schedule of their own are told


def first_batches(training_set: Batches) -> list[Batch]:
    """Return the first batches of a training, all of one size: a short last one is left out."""
    batches = list(itertools.islice(training_set.epoch(0), BATCHES))
    return [batch for batch in batches if len(batch[1]) == len(batches[0][1])]


def where(device: torch.device) -> str:
    """Return a device and how many threads of the host there are, for a heading."""
    return f"{device.type}, {count_of(torch.get_num_threads(), 'thread')}"


def setting_of(config: Config, data: str, size: int, place: str) -> tuple[str, ...]:
    """Return what contenders share, for a heading: data, model and batch, the place, layout, precision."""
    return (
        data,
        f"{config.model.name}, batch {size}",
        place,
        "channels_last" if config.trainer.channels_last and config.model.has_space else "contiguous",
        *([config.trainer.precision] if config.trainer.precision != "float32" else []),
        *(["compiled"] if config.trainer.compile else []),
    )


@dataclass(frozen=True)
class Trainee:
    """A model in training, and what a step of it takes."""

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    mean_loss: Callable[[Tensor, Tensor], Tensor]
    refresh: Refresh | None
    clock: PhaseClock

    def timed(self, step: Callable[[Mark], object]) -> Figures:
        """Run a step, which marks the ends of its phases; return ms of the step, of each phase, and of the host."""
        self.clock.mark()
        step(self.clock.mark)
        self.clock.mark()
        *passes, optimizer = self.clock.flush()  # forward and backward of each micro-batch
        if self.refresh is not None:
            self.refresh.flush()
        forward, backward = sum(passes[::2]), sum(passes[1::2])
        return forward + backward + optimizer, forward, backward, optimizer, self.clock.host_ms


def trainee(
    config: Config,
    bundle: DataBundle,
    training_set: Batches,
    device: torch.device,
    workers: Workers = ALONE,
    averaged: bool = True,
) -> Trainee:
    """Return a configuration's model at the start of its training; equal ones start from equal weights.

    `averaged`: over the workers, its gradients. The learning rate stays that of the first step.
    """
    model = to_device(model_of(config, bundle, workers), config, device)
    for _, layer in norm_layers(model):
        layer.begin(TOTAL_STEPS)
    optimizer = config.optim.make(model)
    set_rate(optimizer, config.schedule.rate_of(config.optim.lr, TOTAL_STEPS)(0))
    forward = forward_of(workers.shared(model, device) if averaged else model, config.trainer, device)
    refresh = None
    if Refresh.needed_by(model):
        refresh = Refresh(model, training_set, precision_of(config.trainer, device), device)
        refresh.begin()
    model.train()
    return Trainee(model, forward, optimizer, loss_function(config.trainer), refresh, phase_clock(device))


def stepper(
    config: Config,
    bundle: DataBundle,
    training_set: Batches,
    batches: Sequence[Batch],
    device: torch.device,
    graph: bool = False,
) -> Stepper:
    """Return the stepper of a configuration on `batches` in turn; `graph`: it replays a step captured on CUDA.

    Errors: IncompatibleError for what cannot be captured.
    """
    one = trainee(config, bundle, training_set, device)
    stream, count, micro_batch = itertools.cycle(batches), itertools.count(), config.micro_batch(workers=1)
    parameters, widest = sum(p.numel() for p in one.model.parameters()), widest_of(one.model, batches[0][0])

    def train(images: Tensor, labels: Tensor, mark: Mark | None) -> None:
        train_step(
            one.forward, one.optimizer, one.mean_loss, images, labels, next(count), one.refresh, mark, micro_batch
        )

    def step() -> Figures:
        images, labels = next(stream)
        return one.timed(lambda mark: train(images, labels, mark))

    if graph:
        replay, traffic = _captured(one, lambda images, labels: train(images, labels, None), stream, device)
        return Stepper(replay, lambda: traffic, parameters, widest)
    return Stepper(step, lambda: traffic_of(step), parameters, widest)


def _captured(
    one: Trainee, train: Callable[[Tensor, Tensor], None], stream: Iterator[Batch], device: torch.device
) -> tuple[Callable[[], Figures], Traffic]:
    """Capture a step in a CUDA graph; return what replays it on the next batch, and what it moves.

    As PyTorch's notes on CUDA graphs ask, steps before it on the stream of the capture leave nothing to be set up, and
    the graph reads each batch from the same memory. A batch comes there before the clock starts, as no step's time
    holds the fetching of its batch.
    """
    if any(layer.refresh_every or layer.gradient_through for layer in bnlab_layers(one.model)):
        raise IncompatibleError("its steps read the training set, and a CUDA graph repeats one step with another batch")
    for group in one.optimizer.param_groups:
        if "capturable" in group:  # AdamW refuses to be captured without
            group["capturable"] = True
    images, labels = (part.clone() for part in next(stream))
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        train(images, labels)  # makes what the optimizer keeps
        traffic = traffic_of(lambda: train(images, labels))
    try:
        with torch.cuda.stream(side), _no_waiting():
            train(images, labels)
        with torch.cuda.graph(graph, stream=side):
            train(images, labels)
    except RuntimeError as error:
        raise IncompatibleError(f"cannot be captured in a CUDA graph: {str(error).partition(chr(10))[0]}") from error
    torch.cuda.current_stream(device).wait_stream(side)

    def replay() -> Figures:
        for target, part in zip((images, labels), next(stream), strict=True):
            target.copy_(part)
        whole, *_, host = one.timed(lambda mark: graph.replay())
        return whole, math.nan, math.nan, math.nan, host

    return replay, traffic


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise RuntimeError where the host waits for the device: in a capture that would leave the device unusable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is said to find most cases only
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def widest_of(model: nn.Module, images: Tensor) -> int:
    """Return the bytes of the widest normalized activation of a batch; 0 without a norm."""
    widest = 0

    def look(layer: nn.Module, x: Tensor) -> None:
        nonlocal widest
        widest = max(widest, x.nbytes)

    with torch.no_grad(), evaluating(model), hooked(normalizations(model).values(), look):
        model(images)
    return widest
