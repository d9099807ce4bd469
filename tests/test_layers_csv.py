"""layers.csv, the figures of measure=full, and the pass in training mode that both come from."""

from __future__ import annotations

import copy
import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from helpers_training import train
from torch import Tensor, nn

from bnlab.config import compose
from bnlab.data.bundle import DataBundle
from bnlab.experiment import run, setup
from bnlab.experiment.config import Config, parse_config
from bnlab.measure.by_layer import LayerGap
from bnlab.measure.decomposition import NAMES
from bnlab.metrics import metrics
from bnlab.models.model import norm_layers
from bnlab.norms.strategy import NormLayer
from bnlab.seeding import generator
from bnlab.training import checkpoint
from bnlab.training.evaluation import Evaluator
from bnlab.training.outcome import Outcome
from bnlab.training.summary import summarize

BATCH = 32
SHORT = ("trainer.steps=12", "eval.every=0.1", "trainer.device=cpu", "trainer.threads=1", "model.widths=[5,6]")
SHORT += (f"data.batch_size={BATCH}", "eval.probe_samples=120", "optim.lr=0.05")
FIGURES = ["mean_z", "mean_z_max", "log_std_ratio", "log_std_ratio_max"]


def trained(folder: Path, *overrides: str) -> Path:
    train([*SHORT, *overrides], folder)
    return folder


def parts(*overrides: str) -> tuple[Config, DataBundle, nn.Module]:
    (tree,) = compose.jobs([*SHORT, *overrides], multirun=False)
    config = parse_config(tree)
    bundle = setup.bundle_of(config.data)
    return config, bundle, setup.model_of(config, bundle)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_probe_of(bundle: DataBundle) -> tuple[list[Tensor], Tensor]:
    """Return the probe's images, three whole batches of 32 of the 120 samples asked for, and their labels."""
    chosen = torch.randperm(len(bundle.test), generator=generator(0, "probes"))[:96]
    images = bundle.test.images[chosen].float() / 255
    mean, std = bundle.mean.view(1, -1, 1, 1), bundle.std.view(1, -1, 1, 1)
    return list(((images - mean) / std).split(BATCH)), bundle.test.labels[chosen]


test_probe_of.__test__ = False  # type: ignore[attr-defined]


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


# ---------------------------------------------------------------- the rows


def test_the_last_rows_by_hand(tmp_path: Path) -> None:
    """Batch normalization written out: what its layers see, pooled over the batches, against their running ones."""
    folder = trained(tmp_path / "run")
    _, bundle, model = parts()
    model.load_state_dict(checkpoint.load(folder)["model"])
    seen: dict[str, list[Tensor]] = {name: [] for name, _ in norm_layers(model)}
    with torch.no_grad():
        for x in test_probe_of(bundle)[0]:
            for name, module in model.named_children():
                if isinstance(module, NormLayer):
                    seen[name].append(x)
                    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
                    weight, bias = (p.view(1, -1, 1, 1) for p in (module.weight, module.bias))  # type: ignore[operator]
                    x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
                else:
                    x = module(x)
    found = {(r["layer"], r["metric"]): r for r in rows_of(folder / "layers.csv") if r["step"] == "12"}
    assert len(found) == 2 * len(FIGURES)
    for depth, (name, layer) in enumerate(norm_layers(model), 1):
        values = torch.cat(seen[name]).double().transpose(0, 1).flatten(1)
        running_mean, running_var = layer.running_mean.double(), layer.running_var.double()  # type: ignore[operator]
        sigma = values.std(1, correction=0)
        z = ((running_mean - values.mean(1)).abs() / sigma).tolist()
        ratio = (running_var.sqrt() / sigma).log().tolist()
        expected = [middle(z), max(z), middle(ratio), max(ratio, key=abs)]
        assert [float(found[name, figure]["value"]) for figure in FIGURES] == pytest.approx(expected, rel=1e-4)
        row = found[name, "mean_z"]
        assert (row["depth"], row["channels"], row["reference"]) == (str(depth), str(len(z)), "probe")
        assert float(row["epoch"]) == 12 / 39


@pytest.mark.parametrize("norm", ["batch", "ghost", "population"])
def test_every_evaluation_has_all_rows_and_the_summary_the_same_figures(tmp_path: Path, norm: str) -> None:
    folder = trained(tmp_path / "run", f"norm={norm}")
    rows, summary = rows_of(folder / "layers.csv"), summary_of(folder)
    steps = [str(step) for step in summary["curve"]["step"]]
    names = [row["layer"] for row in rows if row["step"] == "0" and row["metric"] == "mean_z"]
    assert steps == ["0", "4", "8", "12"]
    assert [(r["step"], r["layer"], r["metric"]) for r in rows] == [
        (step, name, figure) for step in steps for name in names for figure in FIGURES
    ]
    assert list(summary["layers"]) == names
    for name, layer in summary["layers"].items():
        mine = [row for row in rows if row["layer"] == name]
        assert {figure: layer[figure] for figure in FIGURES} == {
            row["metric"]: float(row["value"]) for row in mine if row["step"] == "12"
        }
        for figure in ("mean_z", "log_std_ratio"):
            assert layer["curve"][figure] == [float(row["value"]) for row in mine if row["metric"] == figure]
        assert str(layer["depth"]) == mine[0]["depth"]
    assert metrics["mean_z"].derive(summary) == max(layer["mean_z"] for layer in summary["layers"].values())
    ratios = [layer["log_std_ratio"] for layer in summary["layers"].values()]
    assert metrics["log_std_ratio"].derive(summary) == max(ratios, key=abs)


def test_without_statistics_the_table_has_no_rows(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "norm=layer")
    frame = pandas.read_csv(folder / "layers.csv")
    assert list(frame) == ["step", "epoch", "depth", "layer", "reference", "metric", "value", "channels"]
    assert frame.empty
    assert summary_of(folder)["layers"] == {}
    assert metrics["mean_z"].derive(summary_of(folder)) is None


def test_a_figure_that_is_not_finite_is_null_in_the_summary() -> None:
    _, _, model = parts()
    gap = LayerGap(1, "1", "BatchLayer", 5, math.nan, math.inf, -math.inf, 0.5, None)
    config, _, _ = parts()
    made = summarize(Outcome(layers=[[gap]]), model, [config.norm], BATCH, 1.0, {})
    assert made["layers"]["1"] == {
        "depth": 1,
        "channels": 5,
        "mean_z": None,
        "mean_z_max": None,
        "log_std_ratio": None,
        "log_std_ratio_max": 0.5,
        "curve": {"mean_z": [None], "log_std_ratio": [None]},
    }
    assert made["discrepancy_share"] is None  # no time was spent in training
    assert metrics["mean_z"].derive(made) is None


# ---------------------------------------------------------------- the pass in training mode


@pytest.mark.parametrize("norm", ["batch", "online", "streaming"])
def test_each_batch_is_the_next_step_after_the_same_past(norm: str) -> None:
    """What the layers keep from one batch does not reach the next: each goes through a fresh copy of the model."""
    config, bundle, model = parts(f"norm={norm}", "model.dropout=0.5")
    batches = setup.device_batches(config, bundle, bundle.train, torch.device("cpu"), training=True)
    model.train()
    with torch.no_grad():
        for images, _ in batches.epoch(0):
            model(images * 1.5 + 0.2)
    probe, labels = test_probe_of(bundle)
    outputs = []
    with torch.no_grad():
        for images in probe:
            fresh = copy.deepcopy(model).eval()
            for _, layer in norm_layers(fresh):
                layer.train()
            outputs.append(fresh(images))
        evaluated = copy.deepcopy(model).eval()(torch.cat(probe))
    trained_logits = torch.cat(outputs)
    evaluator = Evaluator(
        bundle,
        config.eval,
        BATCH,
        batches,
        lambda split, training: setup.device_batches(config, bundle, split, torch.device("cpu"), training=training),
        run.precision_of(config.trainer, torch.device("cpu")),
    )
    found = {m.metric: m for m in evaluator.evaluate(model).figures if m.split == "test"}
    loss = nn.functional.cross_entropy
    gap = (loss(trained_logits, labels) - loss(evaluated, labels)).item()
    assert found["loss_gap"].value == pytest.approx(gap, rel=1e-4)
    assert found["loss_gap"].samples == found["kl"].samples == 96
    p, q = trained_logits.double().log_softmax(1), evaluated.double().log_softmax(1)
    assert found["kl"].value == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=1e-4)
    assert found["kl"].value > 1e-5


def test_the_whole_test_split_is_evaluated_once(tmp_path: Path) -> None:
    """Its loss, accuracy and calibration are over all samples, though the probe goes in batches of its own."""
    folder = trained(tmp_path / "run", "eval.batch_size=70")
    _, bundle, model = parts()
    model.load_state_dict(checkpoint.load(folder)["model"])
    mean, std = bundle.mean.view(1, -1, 1, 1), bundle.std.view(1, -1, 1, 1)
    with torch.no_grad():
        logits = model.eval()((bundle.test.images.float() / 255 - mean) / std)
    last = {(r["split"], r["metric"]): r for r in rows_of(folder / "evals.csv") if r["step"] == "12"}
    loss, accuracy = last["test", "loss"], last["test", "accuracy"]
    assert int(loss["samples"]) == len(bundle.test) == 360
    assert float(loss["value"]) == pytest.approx(nn.functional.cross_entropy(logits, bundle.test.labels).item(), 1e-5)
    assert float(accuracy["value"]) == pytest.approx((logits.argmax(1) == bundle.test.labels).double().mean().item())
    in_bins: list[list[float]] = [[] for _ in range(15)]
    for sure, hit in zip(logits.softmax(1).amax(1).tolist(), (logits.argmax(1) == bundle.test.labels), strict=True):
        in_bins[math.ceil(sure * 15) - 1].append(float(hit) - sure)
    assert float(last["test", "ece"]["value"]) == pytest.approx(sum(abs(sum(b)) for b in in_bins) / 360, rel=1e-3)
    assert {split for split, metric in last if metric == "ece"} == {"valid", "test"}
    assert {split for split, metric in last if metric in ("acc_gap", "kl", "flip_rate")} == {"test"}


# ---------------------------------------------------------------- measure=full


def test_full_adds_the_causes_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    more = ("model.dropout=0.3", "data.shift=1")
    cheap, full = trained(tmp_path / "cheap", *more), trained(tmp_path / "full", *more, "measure=full")
    assert (cheap / "steps.csv").read_bytes() == (full / "steps.csv").read_bytes()
    known = {tuple(row.items()) for row in rows_of(cheap / "evals.csv") + rows_of(cheap / "layers.csv")}
    everything = rows_of(full / "evals.csv") + rows_of(full / "layers.csv")
    assert known < {tuple(row.items()) for row in everything}
    layers = rows_of(full / "layers.csv")
    assert Counter(row["reference"] for row in layers) == {"probe": 4 * 2 * 4, "population": 4 * 2 * 4}
    assert list(summary_of(full)["layers"]) == list(summary_of(cheap)["layers"])

    curve = summary_of(full)["curve"]
    for split in ("train", "test"):
        assert all(noise > 0 for noise in curve[f"{split}.mate_noise"])
        for what in ("acc", "loss"):
            terms = [curve[f"{split}.term_{name.replace(' ', '_')}_{what}"] for name in NAMES]
            total = curve[f"{split}.term_total_{what}"]
            assert [sum(parts) for parts in zip(*terms, strict=True)] == pytest.approx(total, abs=1e-9)
        assert all(curve[f"{split}.term_{name}_kl"][-1] > 0 for name in ("dropout", "augmentation", "batch_noise"))
    assert {f"test.batch_curve_{size}" for size in (1, 2, 4, 8, 16, 32, 64)} < set(curve)
    assert all(f"test.stats_{name}" in curve for name in ("running", "precise", "population"))
    assert metrics["mate_noise"].derive(summary_of(full)) == curve["test.mate_noise"][-1]
    assert metrics["mate_noise"].derive(summary_of(cheap)) is None


def test_full_without_statistics_is_exactly_zero(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "norm=layer", "measure=full")
    curve = summary_of(folder)["curve"]
    terms = {name: values for name, values in curve.items() if ".term_" in name or name.endswith("mate_noise")}
    assert len(terms) == 2 * (3 * (len(NAMES) + 1) + 1)
    assert {value for values in terms.values() for value in values} == {0.0}
    assert rows_of(folder / "layers.csv") == []
