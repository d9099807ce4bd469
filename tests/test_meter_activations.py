"""Meters of activations and statistics, against plain loops and closed forms in float64."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_meters import moment, network, read
from numpy.typing import NDArray
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.meters.meter import Moment, Reading, meters
from bnlab.models.cnn import Cnn
from bnlab.models.mlp import Mlp
from bnlab.models.model import build, norm_layers
from bnlab.models.resnet import Resnet
from bnlab.norms.strategy import strategies
from bnlab.seeding import generator

Array = NDArray[np.float64]


def inputs_of(model: nn.Module, module: nn.Module, at: Moment, size: int | None = None) -> Array:
    """What enters `module` in training mode, batch by batch, each the next step after the same past: (values, C)."""
    found: list[Tensor] = []
    images = torch.cat([batch for batch, _ in at.samples(10**6)])
    for batch in images.split(size or at.batch_size):
        each = copy.deepcopy((model, module))
        handle = each[1].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
        each[0].train()(batch)
        handle.remove()
    return torch.cat(found).movedim(1, -1).flatten(0, -2).numpy()


def sorted_percentile(values: Array, percent: float) -> float:
    """By linear interpolation between the two values that the place falls between."""
    ordered = sorted(values.tolist())
    place = percent / 100 * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


def figures(readings: Sequence[Reading]) -> dict[tuple[str, str, str], float]:
    return {(r.figure, r.layer, r.axis): r.value for r in readings}


def moved(model: nn.Module, by: float) -> None:
    """Move all weights a little."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)


# ---------------------------------------------------------------- bands


@pytest.mark.parametrize("name", ["none", "batch", "layer", "renorm"])
@pytest.mark.parametrize("spec", [Mlp(widths=(20, 6, 18, 7)), Cnn(widths=(3, 20))], ids=["mlp", "cnn"])
def test_bands_are_percentiles_of_what_enters_the_activation(name: str, spec: Mlp | Cnn) -> None:
    model = network(name, spec)
    at = moment(model)
    found = read("activations", at)
    hidden = {layer: module for layer, module in model.named_modules() if isinstance(module, nn.ReLU)}
    names = list(hidden)
    shown = {names[0], names[len(names) // 2], names[-1]}
    assert {layer for figure, layer, _ in found if figure == "p50"} == shown
    for layer in shown:
        values = inputs_of(model, hidden[layer], at)
        units = [int(axis.split()[1]) for figure, at_layer, axis in found if (figure, at_layer) == ("p50", layer)]
        assert len(units) == min(16, values.shape[1]) == len(set(units))
        for unit in units:
            for percent in (15, 50, 85):
                expected = sorted_percentile(values[:, unit], percent)
                assert found[f"p{percent}", layer, f"unit {unit}"] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["none", "batch"])
def test_the_drift_index_adds_up_the_moves_of_the_medians(name: str) -> None:
    model = network(name)
    meter, bands = meters["activations"](), []
    for _ in range(4):
        last = figures(list(meter.read(moment(model))))
        keys = sorted((layer, axis) for figure, layer, axis in last if figure == "p50")
        bands.append(np.array([[last[f"p{p}", *key] for key in keys] for p in (15, 50, 85)]))
        moved(model, 0.1)
    moves = sum(abs(after[1] - before[1]) for before, after in itertools.pairwise(bands))
    widths = [band[2] - band[0] for band in bands]
    assert last["drift_index", "-", "-"] == pytest.approx(float(np.mean(moves / np.mean(widths, 0))), rel=1e-9)
    ratio = float(np.exp(np.mean(np.log(widths[-1] / widths[0]))))
    assert last["band_ratio", "-", "-"] == pytest.approx(ratio, rel=1e-9)


def test_nothing_drifts_while_the_weights_stand_still() -> None:
    model = network("batch")
    for name in ("activations", "statistics"):
        meter = meters[name]()
        for _ in range(2):
            last = figures(list(meter.read(moment(model))))
        drifts = [last[key] for key in last if key[0] in ("drift_index", "mean_drift_1", "std_drift_1", "input_drift")]
        assert set(drifts) == {0}


def test_every_hidden_layer_of_a_residual_network_is_seen() -> None:
    spec = Resnet(depth=8, width=2)
    found = list(meters["activations"]().read(moment(build(spec, strategies["batch"](), (1, 8, 8), 10, seed=0))))
    depths = [r.depth for r in found if r.figure == "dead" and r.layer != "-"]
    assert depths == list(range(1, 8))  # all but the classifier
    assert {r.depth for r in found if r.figure == "p50"} == {1, 4, 7}


def test_a_network_without_norms_has_bands_and_no_statistics() -> None:
    model = build(Mlp(widths=(6,), norm_every=2), strategies["batch"](), (1, 8, 8), 10, seed=0)
    assert not list(norm_layers(model))
    assert ("p50", "2", "unit 0") in read("activations", moment(model))
    found = read("statistics", moment(model))
    assert {layer for _, layer, _ in found} == {"-"}
    assert math.isnan(found["error_slope", "-", "-"])


def test_an_activation_of_the_norm_is_one() -> None:
    model = network("frn", Cnn(widths=(3, 4)))
    found = read("activations", moment(model))
    assert len({layer for figure, layer, _ in found if figure == "dead"} - {"-"}) == 2


def test_dead_units_give_one_value_for_everything() -> None:
    model = network("none", Mlp(widths=(8, 8)))
    with torch.no_grad():
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)][1]
        linear.bias[:3] = -1e6
    found = read("activations", moment(model))
    values = [value for (figure, layer, _), value in found.items() if figure == "dead" and layer != "-"]
    outputs = [np.maximum(inputs_of(model, m, moment(model)), 0) for m in model.modules() if isinstance(m, nn.ReLU)]
    assert values == [np.mean((out == 0).all(0)) for out in outputs]
    assert values[1] >= 3 / 8
    assert found["dead", "-", "-"] == pytest.approx(np.mean(values))


# ---------------------------------------------------------------- moments


def test_batch_norm_gives_what_its_formula_says_whatever_gamma_and_beta() -> None:
    model = network("batch", Cnn(widths=(3, 4)))
    with torch.no_grad():
        for _, layer in norm_layers(model):
            assert layer.weight is not None
            layer.weight.copy_(torch.tensor([0.0, 2.0, -3.0, 0.5])[: layer.channels])
            layer.bias.fill_(5)  # type: ignore[union-attr]
        next(module for module in model.modules() if isinstance(module, nn.Conv2d)).weight[0] *= 1e-4  # below epsilon
    found = read("activations", moment(model))
    assert found["mean_off", "-", "-"] < 1e-12
    assert found["std_off", "-", "-"] < 1e-12


@pytest.mark.parametrize("name", ["none", "layer"])
def test_moments_of_others_are_those_of_plain_loops(name: str) -> None:
    model = network(name)
    at = moment(model)
    found = read("activations", at)
    for layer, module in norm_layers(model):
        mean, std = [], []
        for x in np.split(inputs_of(model, module, at), 3):
            s, z = x.std(0), x
            if name == "layer":
                z = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
            mean.append(abs(z.mean(0)).max())
            std.append(abs(z.std(0) - s / np.sqrt(s**2 + 1e-5)).max())
        assert found["mean_off", layer, "-"] == pytest.approx(max(mean), rel=1e-9)
        assert found["std_off", layer, "-"] == pytest.approx(max(std), rel=1e-9)


# ---------------------------------------------------------------- statistics of the training set


def whole_set(model: nn.Module, images: Tensor) -> dict[str, tuple[Array, Array]]:
    """Mean and deviation of what enters each norm layer, of one forward pass of all images in training mode."""
    found: dict[str, tuple[Array, Array]] = {}
    model = copy.deepcopy(model).train()
    for name, layer in norm_layers(model):

        def look(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            x = inputs[0].detach().movedim(1, -1).flatten(0, -2).numpy()
            found[name] = x.mean(0), x.std(0)

        layer.register_forward_pre_hook(look)
    model(images)
    return found


@pytest.mark.parametrize("name", ["none", "batch", "ghost", "layer", "weight_std"])
def test_drift_is_that_of_the_whole_set_at_once(name: str) -> None:
    if name == "ghost":  # the whole set would be normalized in parts
        model = build(Mlp(widths=(8, 8)), strategies["ghost"](size=24), (1, 8, 8), 10, seed=0)
    else:
        model = network(name)
    meter, past = meters["statistics"](), []
    for _ in range(11):
        at = moment(model)
        images = torch.cat([batch for batch, _ in at.training_set.sequential(24)])
        past.append(whole_set(model, images))
        last = figures(list(meter.read(at)))
        moved(model, 0.05)
    for age in (1, 10):
        of_mean, of_std = [], []
        for layer, (mean, std) in past[-1].items():
            old_mean, old_std = past[-1 - age][layer]
            of_mean.append(np.median(abs(mean - old_mean) / std))
            of_std.append(np.median(abs(np.log(std / old_std))))
            assert last[f"mean_drift_{age}", layer, "-"] == pytest.approx(of_mean[-1], rel=1e-6)
            assert last[f"std_drift_{age}", layer, "-"] == pytest.approx(of_std[-1], rel=1e-6)
        assert last[f"mean_drift_{age}", "-", "-"] == pytest.approx(np.median(of_mean), rel=1e-6)
        assert last[f"std_drift_{age}", "-", "-"] == pytest.approx(np.median(of_std), rel=1e-6)
    assert math.isnan(last["mean_drift_100", "-", "-"])
    assert last["input_drift", "-", "-"] == last["mean_drift_10", "input", "-"] == 0


def test_no_more_is_kept_than_the_oldest_age_needs() -> None:
    model = network("none", Mlp(widths=(4,)))
    meter, at = meters["statistics"](), moment(model)
    for _ in range(105):
        last = figures(list(meter.read(at)))
    assert len(meter.memory["past"]) == 100
    assert last["mean_drift_100", "-", "-"] == 0


def set_of(images: Tensor, model: nn.Module) -> Moment:
    """A moment with a training set of its own."""
    labels = torch.arange(len(images)) % 10
    at = moment(model)
    model.float()
    return replace(at, training_set=Batches(Split(images, labels), batch_size=64), batch_size=64)


def test_errors_of_few_samples_fall_by_the_law_of_large_numbers() -> None:
    """Of images of independent noise through one linear layer: sigma / sqrt(n) at every n, and the slope -1/2."""
    images = torch.randint(0, 256, (1024, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    model = network("none", Mlp(widths=(64,)))
    meter, squares = meters["statistics"](), []
    for step in range(40):
        found = figures(list(meter.read(replace(set_of(images, model), step=step))))
        squares.append([found["mean_error", "2", f"n {n}"] ** 2 for n in (16, 64, 256)])
    assert np.sqrt(np.mean(squares, 0)) == pytest.approx([1 / 4, 1 / 8, 1 / 16], rel=0.05)
    assert found["error_slope", "-", "-"] == pytest.approx(-0.5, abs=0.02)
    assert found["std_error", "2", "n 64"] == pytest.approx(1 / math.sqrt(2 * 64), rel=0.2)  # of normal values


def test_errors_are_those_of_batches_drawn_at_this_step() -> None:
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    model = network("batch")
    at = set_of(images, model)
    found = read("statistics", at)
    assert {axis for figure, _, axis in found if figure == "mean_error"} == {"n 16"}  # half of the set at most
    whole = whole_set(model, next(at.training_set.sequential(64))[0])
    rows = torch.randperm(64, generator=generator(0, "probes", 0))
    parts = [whole_set(model, batch) for batch, _ in at.training_set.in_order(rows, 16)]
    for layer, (mean, std) in whole.items():
        for figure, off in (
            ("mean_error", [(part[layer][0] - mean) / std for part in parts]),
            ("std_error", [part[layer][1] / std - 1 for part in parts]),
        ):
            expected = np.sqrt(np.mean(np.square(off)) * 63 / 48)
            assert found[figure, layer, "n 16"] == pytest.approx(expected, rel=1e-4)


def test_dropout_shifts_the_variance_behind_it() -> None:
    """Dropout of p before a linear layer adds p/(1-p) sum w^2 E[x^2] to the variance of what leaves it."""
    images = torch.randint(0, 256, (1024, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    model = network("none", Mlp(widths=(64, 64), dropout=0.5))
    found = read("statistics", set_of(images, model))
    first, second = (layer for layer, _ in norm_layers(model))
    assert found["variance_shift", first, "-"] == 0
    at = set_of(images, model)
    x = next(at.training_set.sequential(1024))[0].flatten(1).double()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hidden = F.relu(F.linear(x, linear[0].weight.double()))
    weight = linear[1].weight.double()
    off = F.linear(hidden, weight).var(0, correction=0)
    on = off + weight.square() @ hidden.square().mean(0)  # p / (1 - p) = 1
    assert found["variance_shift", second, "-"] == pytest.approx((on / off).log().median().item(), rel=0.05)
    assert found["variance_shift", "-", "-"] == found["variance_shift", second, "-"]
    assert not any(figure == "variance_shift" for figure, _, _ in read("statistics", moment(network("none"))))
