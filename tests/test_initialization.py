"""How weights are drawn and inputs scaled, and the metrics that say what came of it, against closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import train
from torch import Tensor, nn

from bnlab.config import compose
from bnlab.data.batches import Batches
from bnlab.errors import ConfigError
from bnlab.experiment.config import parse_config
from bnlab.experiment.setup import bundle_of, device_batches
from bnlab.metrics import metrics
from bnlab.models.model import build, models
from bnlab.norms.strategy import strategies
from bnlab.record.read import read_runs
from bnlab.seeding import generator
from bnlab.training import checkpoint

SMALL = ["model=mlp", "model.widths=[16,8]", "trainer.steps=30", "trainer.threads=1", "optim.lr=0.3", "eval.every=1"]
GAIN = {"relu": math.sqrt(2), "selu": 1.0, "tanh": 5 / 3}


def weights(name: str, norm: str = "batch", **keys: Any) -> list[Tensor]:
    model = build(models[name](**keys), strategies[norm](), (1, 20, 20), 10, 0)
    return [m.weight.detach().double() for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


LARGE = [("mlp", {"widths": (900, 600)}), ("cnn", {"widths": (64, 128), "depth": 2})]


@pytest.mark.parametrize(("name", "keys"), LARGE, ids=["mlp", "cnn"])
@pytest.mark.parametrize("activation", GAIN)
def test_deviations_are_those_of_the_closed_forms(name: str, keys: dict[str, Any], activation: str) -> None:
    for init in ("he", "lecun", "glorot"):
        layers = weights(name, activation=activation, init=init, **keys)
        for layer in layers:
            area = layer[0, 0].numel()  # of the kernel
            fan_in, fan_out = layer.shape[1] * area, layer.shape[0] * area
            gain = 1.0 if layer is layers[-1] else GAIN[activation]
            variance = {"he": gain**2 / fan_in, "lecun": 1 / fan_in, "glorot": 2 / (fan_in + fan_out)}[init]
            n = layer.numel()
            spread = 4 / math.sqrt(n)  # over four standard errors of a normal's deviation, and of a uniform's
            assert float(layer.std()) == pytest.approx(math.sqrt(variance), rel=spread)
            assert abs(float(layer.mean())) < 5 * math.sqrt(variance / n)
            if init == "glorot":
                bound = math.sqrt(6 / (fan_in + fan_out))
                assert bound * (1 - 20 / n) < float(layer.abs().max()) <= bound * (1 + 1e-6)


def test_he_draws_as_before_and_the_norm_changes_no_weight() -> None:
    draw = generator(0, "weights")
    for layer, gain in zip(weights("mlp", widths=(30, 20)), (math.sqrt(2), math.sqrt(2), 1.0), strict=True):
        expected = torch.empty(layer.shape).normal_(0.0, gain / math.sqrt(layer.shape[1]), generator=draw)
        assert torch.equal(layer, expected.double())
    for init in ("he", "lecun", "glorot", "orthogonal"):
        one, other = (weights("cnn", norm, init=init) for norm in ("none", "group"))
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize(("name", "keys"), LARGE, ids=["mlp", "cnn"])
def test_orthogonal_weights_keep_lengths(name: str, keys: dict[str, Any]) -> None:
    layers = weights(name, init="orthogonal", **keys)
    for layer in layers:
        matrix = layer.flatten(1)
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        square = 1.0 if layer is layers[-1] else 2.0
        assert torch.allclose(matrix @ matrix.T, square * torch.eye(len(matrix), dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("init", ["he", "lecun", "glorot", "orthogonal"])
def test_the_gain_is_a_factor_on_all_weights(init: str) -> None:
    for one, other in zip(weights("cnn", init=init), weights("cnn", init=init, gain=0.03), strict=True):
        assert torch.allclose(0.03 * one, other, rtol=1e-5, atol=1e-9)


def pixels(*overrides: str) -> Tensor:
    """Return the first training batch as the model takes it."""
    (tree,) = compose.jobs([*SMALL, *overrides], multirun=False)
    config = parse_config(tree)
    bundle = bundle_of(config.data)
    batches: Batches = device_batches(config, bundle, bundle.train, torch.device("cpu"), training=True)
    return next(batches.epoch(0))[0].double()


def test_the_input_scale_is_a_factor_on_pixels() -> None:
    plain, raw = pixels("model.input_norm=none"), pixels("model.input_norm=none", "model.input_scale=255")
    assert float(plain.max()) <= 1
    assert torch.allclose(raw, 255 * plain, rtol=1e-6)
    assert torch.allclose(raw, raw.round(), atol=1e-4)
    assert torch.equal(pixels("model.input_norm=batch", "model.input_scale=255"), raw)
    with pytest.raises(ConfigError, match="has no effect on standardized input"):
        pixels("model.input_scale=255")


def test_the_preset_of_keras_is_what_it_says() -> None:
    (tree,) = compose.jobs(["+experiment=keras", "norm.eps=1e-4"], multirun=False)
    config = parse_config(tree)
    assert config.norm == strategies["batch"](eps=1e-4, momentum=0.01, unbiased=False)
    assert config.model == models["cnn"](init="glorot")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert train([*SMALL, "norm=batch"], folder / "batch").state == "done"
    assert train([*SMALL, "norm=none"], folder / "none").state == "done"
    return folder


def derived(folder: Path, name: str) -> Any:
    (run,) = read_runs([folder])[0]
    return metrics[name].derive(run.summary or {})


def test_metrics_are_of_the_last_weights_and_the_last_evaluation(trained: Path) -> None:
    state = checkpoint.load(trained / "batch")["model"]
    norms = [name.removesuffix(".running_var") for name in state if name.endswith(".running_var")]
    gammas = [value for name in norms for value in state[f"{name}.weight"].tolist()]
    betas = [value for name in norms for value in state[f"{name}.bias"].tolist()]
    assert len(gammas) == len(betas) == 24
    drift = math.sqrt(math.fsum((gamma - 1) ** 2 for gamma in gammas) / len(gammas))
    assert derived(trained / "batch", "gamma_drift") == pytest.approx(drift, rel=1e-9)
    assert derived(trained / "batch", "beta_max") == max(map(abs, betas))
    assert 0 < drift < 1
    rows = [line.split(",") for line in (trained / "batch" / "evals.csv").read_text().splitlines()[1:]]
    last = {row[2]: float(row[4]) for row in rows if row[3] == "accuracy"}
    assert derived(trained / "batch", "gen_gap") == pytest.approx(last["train"] - last["valid"], abs=1e-12)


def test_without_gamma_or_validation_there_is_no_figure(trained: Path) -> None:
    assert derived(trained / "none", "gamma_drift") is None
    assert derived(trained / "none", "beta_max") is None
    older = json.loads((trained / "batch" / "summary.json").read_text())
    del older["affine"], older["curve"]["valid.accuracy"]
    assert [metrics[name].derive(older) for name in ("gamma_drift", "beta_max", "gen_gap")] == [None, None, None]
