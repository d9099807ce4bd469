"""Which figures a training cannot have, whatever comes of it: those that its strategies or its layers do not have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bnlab.compare.slopes import FEWEST_LEVELS
from bnlab.errors import ConfigError
from bnlab.experiment.config import Config, parse_config
from bnlab.measure.layer_statistics import keeps_statistics
from bnlab.mechanism import is_read_by_a_meter
from bnlab.meters.meter import meters
from bnlab.metric import Metric
from bnlab.models.model import Blocks, norm_layers

IMAGE, CLASSES = (3, 64, 64), 10  # made up: which layers there are does not depend on them


def absent(metric: Metric, tree: Mapping[str, Any], *, over_depth: bool = False) -> str | None:
    """Return why no run of a configuration has a metric, or no slope of it `over_depth`; None: it may."""
    try:
        config = parse_config(tree)
        used = config.model.strategies(config.norm)
        if is_read_by_a_meter(metric):
            reason = meters[metric.by.removeprefix("measure=")].why_not(used) or _too_few(metric.name, config)
        elif metric.name == "initial_share":
            shares = [each.initial_share(1, config.data.batch_size) for each in used]
            reason = f"norm={config.norm.name} averages no batches" if shares == [None] * len(used) else None
        else:
            reason = _of_layers(metric.name, config, FEWEST_LEVELS if over_depth else 1)
    except ConfigError:
        return None  # what does not fit is refused by itself, or is a run's outcome
    return reason and f"no run here can have it: {reason}\nask for another figure, or of another arm"


def _too_few(name: str, config: Config) -> str | None:
    """Return that a training has too few readings for a drift over ten of them, where its settings alone tell."""
    steps, epochs, every = config.trainer.steps, config.trainer.epochs, config.measure_every
    known = (
        epochs / config.eval.every if steps is None and every is None else steps / every if steps and every else None
    )
    if name != "mean_drift_10" or known is None or (readings := 1 + math.ceil(known)) > 10:
        return None
    return f"it is from a reading to the tenth after it, and there are {readings}"


def _of_layers(name: str, config: Config, fewest: int) -> str | None:
    """Return that too few layers have what a metric is read of; None: they are enough."""
    with torch.device("meta"):
        model = nn.Sequential(*config.model.layers(Blocks(config.model, config.norm), IMAGE, CLASSES))
    layers = [layer for _, layer in norm_layers(model)]
    match name:
        case "gamma_drift":
            count, what = sum(layer.weight is not None for layer in layers), "gamma"
        case "beta_max":
            count, what = sum(layer.bias is not None for layer in layers), "beta"
        case "refresh_ms":
            count, what = sum(bool(getattr(layer, "refresh_every", None)) for layer in layers), "refreshed statistics"
        case _:
            count, what = sum(map(keeps_statistics, layers)), "running statistics"
            count += config.model.input_norm == "batch"
    if count >= fewest:
        return None
    few = f" in {fewest} layers or more, as a slope needs" if count else ""
    return f"norm={config.norm.name} has no {what}{few}"
