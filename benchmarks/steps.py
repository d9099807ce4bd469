"""What a strategy costs: the whole training step of each against `none`, one step each in turn, on equal batches."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable

import torch

from benchmarks.loops import BATCH, LR, images
from bnlab.data import Batches
from bnlab.measure.calibration import Calibration
from bnlab.models import build, models
from bnlab.norms import strategies
from bnlab.training.loop import train_step
from bnlab.training.optim import optimizers
from bnlab.training.trainer import TrainerConfig, forward_of, loss_function

TRAINING_SET = 1024  # images, for the strategies that read it


def contenders(kind: str, channels_last: bool, names: list[str]) -> dict[str, Callable[[], float]]:
    """Return one contender a strategy, and a second copy of `none`: each does one step and returns its milliseconds."""
    arms = {"none": "none", "none again": "none"} | {label(name): name for name in names if name != "none"}
    return {title: one_step(kind, channels_last, name) for title, name in arms.items()}


def label(name: str) -> str:
    """Return what the table calls a strategy."""
    return f"{name}, {TRAINING_SET:,} images" if strategies[name]().facts.reads_training_set else name


def one_step(kind: str, channels_last: bool, name: str, training_set: int = TRAINING_SET) -> Callable[[], float]:
    """Return a function that does one training step of the strategy `name` and returns its milliseconds.

    What the strategy itself needs, such as fresh statistics of `training_set` images, is inside the step.
    """
    split = images(training_set)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device = torch.device("cpu")
    batches = Batches(split, batch_size=BATCH, channels_last=channels_last)
    pixels, labels = next(batches.sequential(BATCH))
    config = TrainerConfig(channels_last=channels_last)
    loss_of = loss_function(config)
    model = build(models[kind](), strategies[name](), (1, 28, 28), 10, seed=0).to(memory_format=layout)
    optimizer = optimizers["sgd"](lr=LR).make(model)
    forward = forward_of(model, config, device)
    calibration = None
    if Calibration.needed_by(model):
        calibration = Calibration(model, batches, contextlib.nullcontext, device)
        calibration.begin()
    model.train()
    count = itertools.count()

    def step() -> float:
        start = time.perf_counter()
        train_step(forward, optimizer, loss_of, pixels, labels, next(count), calibration)
        return (time.perf_counter() - start) * 1e3

    return step
