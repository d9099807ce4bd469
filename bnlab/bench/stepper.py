"""One arm of a bench: a model in training, of which one step at a time is taken and timed.

The step is the training loop's own `train_step`, on batches that lie on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnlab.bench.engine import Stepper
from bnlab.bench.traffic import traffic_of
from bnlab.clock import phase_clock
from bnlab.config import Config
from bnlab.data import Batches, DataBundle
from bnlab.measure.calibration import Calibration
from bnlab.measure.layers import normalizations
from bnlab.measure.modes import evaluating
from bnlab.measure.population import hooked
from bnlab.models import norm_layers
from bnlab.prepare import model_of, placed
from bnlab.training.loop import train_step
from bnlab.training.trainer import forward_of, loss_function, precision_of

Batch = tuple[Tensor, Tensor]
BATCHES = 8  # of the training set, taken in turn
TOTAL_STEPS = 10_000  # that strategies with a schedule of their own are told


def first_batches(training_set: Batches) -> list[Batch]:
    """Return the first batches of a training, all of one size: a short last one is left out."""
    batches = list(itertools.islice(training_set.epoch(0), BATCHES))
    return [batch for batch in batches if len(batch[1]) == len(batches[0][1])]


def stepper(
    config: Config, bundle: DataBundle, training_set: Batches, batches: Sequence[Batch], device: torch.device
) -> Stepper:
    """Return the stepper of a configuration on `batches` in turn; equal configurations start from equal weights."""
    model = placed(model_of(config, bundle), config, device)
    for _, layer in norm_layers(model):
        layer.begin(TOTAL_STEPS)
    optimizer = config.optim.make(model)
    for group in optimizer.param_groups:
        group["lr"] = config.schedule.rate_of(config.optim.lr, TOTAL_STEPS)(0)
    forward, loss_of = forward_of(model, config.trainer, device), loss_function(config.trainer)
    calibration = None
    if Calibration.needed_by(model):
        calibration = Calibration(model, training_set, precision_of(config.trainer, device), device)
        calibration.begin()
    stream = itertools.cycle(batches)
    clock, count = phase_clock(device), itertools.count()
    model.train()

    def step() -> tuple[float, float, float, float]:
        images, labels = next(stream)
        clock.mark()
        train_step(forward, optimizer, loss_of, images, labels, next(count), calibration, clock.mark)
        clock.mark()
        phases = clock.flush()
        if calibration is not None:
            calibration.flush()
        ahead, back, update = phases
        return sum(phases), ahead, back, update

    parameters = sum(p.numel() for p in model.parameters())
    return Stepper(step, lambda: traffic_of(step), parameters, _widest(model, batches[0][0]))


def _widest(model: nn.Module, images: Tensor) -> int:
    """Return the bytes of the widest normalized activation of a training batch."""
    widest = 0

    def look(layer: nn.Module, x: Tensor) -> None:
        nonlocal widest
        widest = max(widest, x.nbytes)

    with torch.no_grad(), evaluating(model), hooked(normalizations(model).values(), look):
        model(images)
    return widest
