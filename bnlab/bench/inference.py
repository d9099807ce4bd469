"""Evaluation timed in turn: with kept statistics, with those of each batch (is_training=True), and folded."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bnlab.bench.arms import BenchSection, prepared
from bnlab.bench.engine import Contest, Stepper
from bnlab.bench.pairing import Figures
from bnlab.bench.stepper import setting_of, where, widest_of
from bnlab.bench.traffic import traffic_of
from bnlab.data.bundle import DataBundle
from bnlab.errors import ConfigError
from bnlab.experiment.config import Config
from bnlab.experiment.setup import bundle_of, device_batches, model_of, to_device
from bnlab.measure.folding import folded
from bnlab.measure.layer_statistics import normalizations
from bnlab.timing import phase_clock
from bnlab.training.trainer import forward_of

USUAL = ("eval.stats=running,batch,folded", "eval.batch_size=1,8,64")  # where the command line names none


def inference_contest(section: BenchSection) -> Contest:
    """Return the contest of a section's evaluations, each of one batch of `eval.batch_size` test images.

    Errors: ConfigError where there are too few; as of reading its data and finding its device.
    """
    config = section.arms[0].config
    device, bundle, size = prepared(config.trainer), bundle_of(config.data), config.eval.batch_size
    test = device_batches(config, bundle, bundle.test, device, training=False)
    if size > len(test):
        raise ConfigError(f"eval.batch_size={size}: {bundle.name} has {len(test):,} test images")
    images, _ = next(test.sequential(size))
    steppers: dict[str, Callable[[], Stepper]] = {
        arm.label: partial(_stepper, arm.config, bundle, images, device) for arm in section.arms
    }
    title = f"evaluation of one batch {section.title}".strip()
    return Contest(
        title, setting_of(config, bundle.name, size, where(device)), size, device, steppers, section.left_out
    )


def _stepper(config: Config, bundle: DataBundle, images: Tensor, device: torch.device) -> Stepper:
    model = to_device(model_of(config, bundle), config, device).eval()
    if config.eval.stats == "folded":
        model = folded(model)
    if config.eval.stats == "batch":
        for layer in normalizations(model).values():
            layer.train()
    forward, clock = forward_of(model, config.trainer, device), phase_clock(device)

    @torch.no_grad()
    def step() -> Figures:
        clock.mark()
        forward(images)
        clock.mark()
        (whole,) = clock.flush()
        return whole, math.nan, math.nan, math.nan, clock.host_ms

    parameters = sum(p.numel() for p in model.parameters())
    return Stepper(step, lambda: traffic_of(step), parameters, widest_of(model, images))
