"""What a finished training says of itself: the summary that comparisons read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from bnlab.measure.by_layer import LayerGap
from bnlab.metrics import warnings_of
from bnlab.norms.strategy import NormLayer, Strategy
from bnlab.training.evaluation import LAYER_FIGURES
from bnlab.training.outcome import Outcome


def summarize(
    outcome: Outcome,
    model: nn.Module,
    used: Sequence[Strategy],
    batch_size: int,
    wall_seconds: float,
    environment: Mapping[str, Any],
    eval_stats: str = "running",
    absent_meters: Mapping[str, str] | None = None,
    passes: int = 1,
) -> dict[str, Any]:
    """Return the outcome as JSON-ready values; a figure that is not finite becomes null.

    `used` are the strategies in the model, the one under study first; the initial share is the largest among them.
    `absent_meters` could not be read, each with its reason.
    `batch_size` samples are normalized at a time, in so many `passes` a step.
    """
    layers = [module for module in model.modules() if isinstance(module, NormLayer)]
    shares = [s for each in used if (s := each.initial_share(outcome.steps * passes, batch_size)) is not None]
    share = max(shares, key=lambda share: share.share_left, default=None)
    if share is not None and share.half_life_steps is not None:
        share = replace(share, half_life_steps=share.half_life_steps / passes)
    summary = {
        "state": outcome.state,
        "diverged_at": outcome.diverged_at,
        "steps": outcome.steps,
        "epochs": outcome.epochs,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": outcome.train_seconds,
        "eval_seconds": outcome.eval_seconds,
        "discrepancy_seconds": outcome.discrepancy_seconds,
        "discrepancy_share": outcome.discrepancy_seconds / outcome.train_seconds if outcome.train_seconds else None,
        "wall_seconds": wall_seconds,
        "warmup_seconds": outcome.warmup_seconds,
        "step_ms": outcome.step_ms,
        "refresh_ms": outcome.refresh_ms,
        "images_per_second": outcome.images_per_second,
        "unnormalizable_batches": max((layer.num_unnormalizable for layer in layers), default=0),
        "initial_share": None if share is None else asdict(share),
        "affine": _affine(layers),
        "facts": asdict(used[0].facts),
        "layers": layers_by_name(outcome.layers),
        "curve": {name: finite(values) for name, values in outcome.curve.items()},
        "environment": environment,
    }
    if outcome.readings or absent_meters:
        summary["meters"] = _meters(outcome, absent_meters or {})
    return summary | {"warnings": warnings_of(summary, eval_stats)}


def _meters(outcome: Outcome, absent: Mapping[str, str]) -> dict[str, Any]:
    """Return meter -> its figures of the network at each reading and its seconds; or why it could not be read."""
    read = {
        name: {"seconds": outcome.meter_seconds[name], "curve": {key: finite(values) for key, values in curves.items()}}
        for name, curves in outcome.readings.items()
    }
    return read | {name: {"absent": reason} for name, reason in absent.items()}


def _affine(layers: Sequence[NormLayer]) -> dict[str, float | None]:
    """Return how far gamma is from 1, as RMS over all gammas, and the largest |beta|; null where no layer has any."""
    weights = [layer.weight.detach().double() for layer in layers if layer.weight is not None]
    biases = [layer.bias.detach().double() for layer in layers if layer.bias is not None]
    drift = float((torch.cat(weights) - 1).square().mean().sqrt()) if weights else math.nan
    largest = float(torch.cat(biases).abs().max()) if biases else math.nan
    return dict(zip(("gamma_drift", "beta_max"), finite([drift, largest]), strict=True))


def layers_by_name(evaluations: Sequence[Sequence[LayerGap]]) -> dict[str, Any]:
    """Return layer -> its figures at the last evaluation, and those of the middle channel over all evaluations."""
    by_name: dict[str, Any] = {}
    for layer in evaluations[-1] if evaluations else ():
        before = [gap for gaps in evaluations for gap in gaps if gap.name == layer.name]
        figures = dict(zip(LAYER_FIGURES, finite([getattr(layer, name) for name in LAYER_FIGURES]), strict=True))
        curve = {name: finite([getattr(gap, name) for gap in before]) for name in ("mean_z", "log_std_ratio")}
        by_name[layer.name] = {"depth": layer.depth, "channels": layer.channels, **figures, "curve": curve}
    return by_name


def finite(values: Sequence[float]) -> list[float | None]:
    """Return values that JSON has: null for what is not finite."""
    return [value if math.isfinite(value) else None for value in values]
