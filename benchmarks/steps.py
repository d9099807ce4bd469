"""What a strategy costs: the whole training step of each against `none`, one step each in turn, on equal batches."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch

from benchmarks.loops import BATCH, LR, images
from bnlab.models import build, models
from bnlab.norms import strategies
from bnlab.training.loop import TrainerConfig, forward_of, loss_function, train_step
from bnlab.training.optim import optimizers


def contenders(kind: str, channels_last: bool, names: list[str]) -> dict[str, Callable[[], float]]:
    """Return one contender a strategy, and a second copy of `none`: each does one step and returns its milliseconds."""
    split = images(BATCH)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pixels = (split.images.float() / 255).to(memory_format=layout)
    config = TrainerConfig(channels_last=channels_last)
    loss_of = loss_function(config)

    def contender(name: str) -> Callable[[], float]:
        model = build(models[kind](), strategies[name](), (1, 28, 28), 10, seed=0).to(memory_format=layout)
        optimizer = optimizers["sgd"](lr=LR).make(model)
        forward = forward_of(model, config, torch.device("cpu"))
        model.train()

        count = itertools.count()

        def step() -> float:
            start = time.perf_counter()
            train_step(forward, optimizer, loss_of, pixels, split.labels, next(count))
            return (time.perf_counter() - start) * 1e3

        return step

    return {"none": contender("none"), "none again": contender("none")} | {
        name: contender(name) for name in names if name != "none"
    }
