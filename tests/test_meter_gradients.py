"""The meter of gradients, against plain loops in float64 and figures known without one."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_meters import moment, network, read
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.meters.meter import Moment, parameters_by_layer
from bnlab.models.cnn import Cnn
from bnlab.models.mlp import Mlp
from bnlab.models.model import build
from bnlab.norms.strategy import strategies

DEEP = Mlp(widths=(64,) * 8, activation="sigmoid")


def loops(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Return the gradient of a batch by the name of its parameter, from `backward` in training mode."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train().zero_grad()
    F.cross_entropy(model(images), labels).backward()
    model.load_state_dict(before)
    return {name: weight.grad.numpy().copy() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", ["none", "batch", "layer", "renorm", "weight_std"])
def test_figures_by_layer_are_those_of_plain_loops(name: str) -> None:
    model = network(name, Cnn(widths=(4, 4), bias="true"))
    at = moment(model, rate=0.3)
    found, gradient = read("gradients", at), loops(model, *at.batch)
    weights = {key: weight.detach().numpy() for key, weight in model.named_parameters()}
    layers = list(parameters_by_layer(model))
    assert len(layers) == 3
    for layer in layers:
        weight, of_weight = weights[f"{layer}.weight"], gradient[f"{layer}.weight"]
        length, steepness = math.sqrt((weight**2).sum()), math.sqrt((of_weight**2).sum())
        bias = math.sqrt((gradient[f"{layer}.bias"] ** 2).sum())
        assert found["gradient", layer, "-"] == pytest.approx(steepness, rel=1e-9)
        assert found["weight", layer, "-"] == pytest.approx(length, rel=1e-9)
        assert found["effective_rate", layer, "-"] == pytest.approx(0.3 / length**2, rel=1e-9)
        euler = (weight * of_weight).sum() / (length * steepness)
        assert found["euler_residual", layer, "-"] == pytest.approx(euler, rel=1e-9, abs=1e-12)
        assert found["bias_gradient", layer, "-"] == pytest.approx(bias / steepness, rel=1e-9, abs=1e-12)
    logs = [math.log10(found["gradient", layer, "-"]) for layer in layers]
    assert found["gradient_slope", "-", "-"] == pytest.approx(np.polyfit([1, 2, 3], logs, 1)[0], rel=1e-9)
    assert found["gradient_spread", "-", "-"] == pytest.approx(max(logs) - min(logs))
    for figure in ("effective_rate", "euler_residual", "bias_gradient"):
        middle = sorted(abs(found[figure, layer, "-"]) for layer in layers)[1]
        assert found[figure, "-", "-"] == middle


@pytest.mark.parametrize("name", ["none", "batch", "layer"])
def test_the_noise_is_that_of_plain_loops(name: str) -> None:
    model = network(name)
    at = moment(model)
    gradients = [loops(model, *batch) for batch in at.samples(24)]
    flat = np.stack([np.concatenate([part.ravel() for part in each.values()]) for each in gradients])
    assert len(flat) == 3  # the whole batches of 8 that 24 images have
    noise = flat.var(axis=0, ddof=1).sum()
    signal = (flat.mean(axis=0) ** 2).sum() - noise / 3
    found = read("gradients", at)
    assert found["gradient_noise", "-", "-"] == pytest.approx(noise, rel=1e-9)
    assert found["gradient_signal", "-", "-"] == pytest.approx(signal, rel=1e-9)
    assert found["noise_scale", "-", "-"] == pytest.approx(8 * noise / signal if signal > 0 else math.nan, nan_ok=True)


# ---------------------------------------------------------------- noise of known size


def of_known_noise(draw: int, samples: int, batch_size: int) -> Moment:
    """A loss whose gradient is the mean pixel, independent and uniform over 0 .. 255, times 1/255, less the middle."""
    images = torch.randint(0, 256, (samples, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(draw))
    labels = torch.zeros(samples, dtype=torch.long)
    batches = Batches(Split(images, labels), batch_size=batch_size, mean=torch.tensor([0.5]), std=torch.tensor([1.0]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss: Callable[[Tensor, Tensor], Tensor] = lambda logits, _: logits.mean()  # noqa: E731
    return Moment(0, 0.1, next(batches.epoch(0)), batches, batch_size, loss, nullcontext, model, optimizer)


@pytest.mark.parametrize("batch_size", [4, 16])
def test_noise_and_signal_are_unbiased(batch_size: int) -> None:
    """Of 16 weights the gradient is 0 on average, that of the bias is 1 and does not vary."""
    known = 16 * (256**2 - 1) / 12 / 255**2 / batch_size
    draws = [read("gradients", of_known_noise(draw, 8 * batch_size, batch_size)) for draw in range(100)]
    noise, signal = (
        np.array([found[figure, "-", "-"] for found in draws]) for figure in ("gradient_noise", "gradient_signal")
    )
    assert noise.mean() == pytest.approx(known, rel=0.05)
    assert abs(signal.mean() - 1) < 3 * signal.std() / 10
    assert 3 * signal.std() / 10 < known / 8 / 2  # what the length of the mean gradient alone is too much


def test_a_training_set_of_one_batch_has_no_noise() -> None:
    for samples, batch_size in ((15, 8), (8, 16)):
        found = read("gradients", of_known_noise(0, samples, batch_size))
        assert all(
            math.isnan(found[figure, "-", "-"]) for figure in ("gradient_noise", "gradient_signal", "noise_scale")
        )
        assert math.isfinite(found["effective_rate", "-", "-"])
    assert math.isfinite(read("gradients", of_known_noise(0, 16, 8))["gradient_noise", "-", "-"])


# ---------------------------------------------------------------- what a norm does to gradients


def hidden(model: nn.Module) -> list[str]:
    return list(parameters_by_layer(model))[:-1]


@pytest.mark.parametrize(("name", "invariant"), [("batch", True), ("layer", True), ("group", True), ("none", False)])
def test_weights_before_a_norm_have_no_gradient_along_themselves(name: str, invariant: bool) -> None:
    more = {"groups": 2} if name == "group" else {}
    model = build(Mlp(widths=(8, 8)), strategies[name](eps=1e-12, **more), (1, 8, 8), 10, seed=0)
    found = read("gradients", moment(model))
    for layer in hidden(model):
        assert (abs(found["euler_residual", layer, "-"]) < 1e-8) == invariant
    assert (found["euler_residual", "-", "-"] < 1e-8) == invariant
    assert abs(found["euler_residual", list(parameters_by_layer(model))[-1], "-"]) > 1e-3  # that no norm follows


@pytest.mark.parametrize(("name", "dead"), [("batch", True), ("ghost", True), ("layer", False), ("none", False)])
def test_a_bias_before_batch_norm_has_no_gradient(name: str, dead: bool) -> None:
    model = network(name, Mlp(widths=(8, 8), bias="true"))
    found = read("gradients", moment(model))
    for layer in hidden(model):
        assert (found["bias_gradient", layer, "-"] < 1e-9) == dead
    assert (found["bias_gradient", "-", "-"] < 1e-9) == dead


def test_only_layers_with_a_bias_have_the_figure_of_it() -> None:
    model = network("batch")
    found = read("gradients", moment(model))
    with_bias = {layer for figure, layer, _ in found if figure == "bias_gradient"}
    assert with_bias == {list(parameters_by_layer(model))[-1], "-"}


def test_gradients_vanish_through_sigmoids_and_not_with_batch_norm() -> None:
    """Every sigmoid passes a quarter at most: without a norm, each layer has less than half of the next one's."""
    slopes = {
        name: read("gradients", moment(network(name, DEEP)))["gradient_slope", "-", "-"] for name in ("none", "batch")
    }
    assert slopes["none"] > math.log10(2)
    assert abs(slopes["batch"]) < 0.1


def test_gradients_of_zero_have_no_slope() -> None:
    model = network("none")
    nn.init.zeros_(list(model.parameters())[-2])  # the classifier's weights: nothing passes them
    found = read("gradients", moment(model))
    assert math.isnan(found["gradient_slope", "-", "-"])
    assert math.isnan(found["gradient_spread", "-", "-"])
