"""Meters of mechanism: they change nothing, and each reads what an independent computation gives."""

from __future__ import annotations

import csv
import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers_cli import bnlab
from helpers_meters import moment, network, read
from helpers_training import train
from torch import Tensor
from torch.func import functional_call

from bnlab.compare.comparison import compare
from bnlab.config import compose
from bnlab.config.files import meter_lines
from bnlab.errors import ConfigError
from bnlab.experiment.evaluate_again import evaluate_again
from bnlab.experiment.run import preflight
from bnlab.meters.curvature import largest_eigenvalue
from bnlab.meters.meter import ALWAYS, Meter, Reading, gradient_of, meters, parameters_by_layer
from bnlab.models.cnn import Cnn
from bnlab.models.mlp import Mlp
from bnlab.models.model import build
from bnlab.norms.strategy import strategies
from bnlab.record.evaluations import with_settings

SHORT = ("data=digits", "trainer.steps=7", "data.batch_size=32", "trainer.threads=1", "trainer.device=cpu")
SHORT += ("eval.probe_samples=128",)
FEW = ("none", "batch", "population", "online")  # in every run of the tests; the others with all tests
SMALL = ("model=cnn", "model.widths=[8,8]", "eval.every=0.05")


# ---------------------------------------------------------------- what a run records


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.csv").read_bytes() for name in ("steps", "evals", "layers")}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in strategies]
)
def test_no_meter_changes_a_training_by_a_bit(tmp_path: Path, name: str) -> None:
    plain, metered = tmp_path / "plain", tmp_path / "metered"
    line = (*SHORT, *SMALL, f"norm={name}", "model.dropout=0.2", "data.shift=1", "trainer.steps=4")
    every = f"measure=[{','.join(meters)}]"
    assert train(line, plain).state == train([*line, every, "measure_every=3"], metered).state == "done"
    assert tables(plain) == tables(metered)
    weights = [torch.load(folder / "checkpoint.pt", weights_only=True)["model"] for folder in (plain, metered)]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    found = json.loads((metered / "summary.json").read_text())["meters"]
    assert set(found) == set(meters)
    rows = rows_of(metered / "meters.csv")
    for meter, about in found.items():
        steps = {int(row["step"]) for row in rows if row["meter"] == meter}
        if "absent" in about:
            assert not steps
            assert name in about["absent"]
        else:
            assert steps == {0, 3, 4}
            assert about["curve"]["step"] == [0, 3, 4]
            assert all(len(curve) == 3 for curve in about["curve"].values())


def test_how_often_meters_are_read_is_refused_where_there_is_none() -> None:
    line = ["data=digits", "measure=cheap,full,[gap,probe],landscape", "measure_every=5"]
    *others, metered = compose.jobs(line, multirun=True)
    for other in others:
        with pytest.raises(ConfigError, match=r"measure_every=5: measure=gap(,probe)? names no meter to read\n"):
            preflight([other])
    preflight([*others, metered])  # arms without one beside an arm with one
    preflight([metered, with_settings(metered, {"measure": "full"})])


def test_meters_are_read_at_evaluations_unless_told_otherwise(tmp_path: Path) -> None:
    train([*SHORT, "model=mlp", "model.widths=[8]", "eval.every=0.1", "measure=landscape"], tmp_path / "run")
    rows, evaluated = rows_of(tmp_path / "run" / "meters.csv"), rows_of(tmp_path / "run" / "evals.csv")
    assert {row["step"] for row in rows} == {row["step"] for row in evaluated}
    assert {row["meter"] for row in rows} == {"landscape"}


def test_a_run_without_meters_has_no_table_of_them(tmp_path: Path) -> None:
    train([*SHORT, "model=mlp", "model.widths=[8]"], tmp_path / "run")
    assert not (tmp_path / "run" / "meters.csv").exists()
    assert "meters" not in json.loads((tmp_path / "run" / "summary.json").read_text())


# ---------------------------------------------------------------- gradients along a step


@pytest.mark.parametrize("name", ["none", "batch", "layer", "renorm"])
def test_the_landscape_is_that_of_plain_loops(name: str) -> None:
    model = network(name)
    at = moment(model)
    found = read("landscape", at)
    images, labels = at.batch

    def at_weights(weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        own = {key: weight.detach().clone().requires_grad_() for key, weight in weights.items()}
        buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
        loss = F.cross_entropy(functional_call(model, own | buffers, (images,)), labels)
        return loss.detach(), dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))

    model.train()
    start = {key: weight.detach() for key, weight in model.named_parameters()}
    loss, gradient = at_weights(start)
    flat = torch.cat([part.flatten() for part in gradient.values()])
    losses, changes, smooth = [loss], [], []
    for factor in (0.5, 1, 2, 4):
        moved, there = at_weights({key: weight - factor * 0.1 * gradient[key] for key, weight in start.items()})
        change = (torch.cat([part.flatten() for part in there.values()]) - flat).norm()
        losses.append(moved)
        changes.append(change)
        smooth.append(change / (factor * 0.1 * flat.norm()))
    assert found["loss_range", "-", "-"] == pytest.approx((max(losses) - min(losses)).item(), rel=1e-9)
    assert found["grad_change", "-", "-"] == pytest.approx(max(changes).item(), rel=1e-9)
    assert found["beta_smooth", "-", "-"] == pytest.approx(max(smooth).item(), rel=1e-9)

    last = list(parameters_by_layer(model))[-1]
    own = [f"{last}.weight", f"{last}.bias"]
    updated = {key: weight - (0 if key in own else 0.1) * gradient[key] for key, weight in start.items()}
    _, after = at_weights(updated)
    one, other = (torch.cat([part[key].flatten() for key in own]) for part in (gradient, after))
    assert found["ics", last, "-"] == pytest.approx(((one - other).norm() / one.norm()).item(), rel=1e-9)
    assert found["ics_cosine", last, "-"] == pytest.approx(F.cosine_similarity(one, other, dim=0).item(), rel=1e-9)
    first = next(iter(parameters_by_layer(model)))
    assert found["ics", first, "-"] == 0


def test_a_layer_without_a_gradient_is_left_out_of_the_median() -> None:
    model = network("none")
    with torch.no_grad():
        list(model.parameters())[-2].zero_()  # nothing comes back to the layers before
    found = read("landscape", moment(model))
    *cut, last = parameters_by_layer(model)
    assert all(math.isnan(found["ics", layer, "-"]) for layer in cut)
    assert found["ics", "-", "-"] == found["ics", last, "-"] == 0


def test_the_curvature_of_a_quadratic_is_its_largest_eigenvalue() -> None:
    eigenvalues = torch.tensor([5.0, 1.0, 0.1], dtype=torch.float64)
    value, converged = largest_eigenvalue(lambda w: [w[0] * eigenvalues], [torch.ones(3, dtype=torch.float64)])
    assert converged
    assert value == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize("spectrum", [(3.0, -7.0, 1.0), (-4.0, 0.5, 0.5), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0)])
def test_the_sign_of_the_largest_eigenvalue_is_kept(spectrum: Sequence[float]) -> None:
    turned, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    matrix = turned @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ turned.T
    value, converged = largest_eigenvalue(lambda w: [matrix @ w[0]], [torch.ones(3, dtype=torch.float64)])
    assert converged
    assert value == pytest.approx(max(spectrum, key=abs), rel=0.02, abs=1e-9)


@pytest.mark.parametrize("name", ["none", "batch", "ghost", "layer", "group", "rms", "weight_std"])
def test_the_curvature_is_that_of_the_whole_hessian(name: str) -> None:
    model = network(name)
    at = moment(model)
    images, labels = next(iter(at.samples(1)))
    model.train()
    start = torch.cat([weight.detach().flatten() for weight in model.parameters()])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([weight.numel() for weight in model.parameters()])
        named = model.named_parameters()
        weights = {key: part.view_as(weight) for (key, weight), part in zip(named, parts, strict=True)}
        buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
        return F.cross_entropy(functional_call(model, weights | buffers, (images.double(),)), labels)

    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, start))
    largest = eigenvalues[eigenvalues.abs().argmax()].item()
    found = read("curvature", at)
    assert found["converged", "-", "-"] == 1
    assert found["lambda_max", "-", "-"] == pytest.approx(largest, rel=0.05)
    assert found["stable_rate", "-", "-"] == pytest.approx(
        2 / largest if largest > 0 else math.nan, rel=0.05, nan_ok=True
    )


def test_a_gradient_is_of_the_next_step_and_leaves_statistics() -> None:
    model = network("batch")
    at = moment(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _, gradient = gradient_of(at.copy(), at.batch, F.cross_entropy)
    model.train()
    F.cross_entropy(model(at.batch[0]), at.batch[1]).backward()
    assert all(torch.equal(weight.grad, part) for weight, part in zip(model.parameters(), gradient, strict=True))
    model.load_state_dict(before)
    gradient_of(model, at.batch, F.cross_entropy)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_step_in_parts_has_the_gradient_of_ghosts() -> None:
    batch, ghost = network("batch"), build(Mlp(widths=(8, 8)), strategies["ghost"](size=4), (1, 8, 8), 10, seed=0)
    in_parts = replace(moment(batch), micro_batch=4)
    loss, gradient = in_parts.gradient(in_parts.copy())
    expected_loss, expected = moment(ghost).gradient(ghost)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(gradient, expected, strict=True))


def test_parameters_stand_with_the_layer_that_they_follow() -> None:
    model = network("batch", Cnn(widths=(3, 4)))
    places = parameters_by_layer(model)
    assert sorted(place for own in places.values() for place in own) == list(range(len(list(model.parameters()))))
    names = [name for name, _ in model.named_parameters()]
    for layer, own in places.items():
        assert names[own[0]] == f"{layer}.weight"


# ---------------------------------------------------------------- the contract


def test_every_meter_says_what_it_is_and_is_known_to_measure() -> None:
    assert not set(ALWAYS) & set(meters)
    for name in meters:
        assert issubclass(meters[name], Meter)
        assert (meters[name].__doc__ or "").strip()


def test_probe_samples_are_whole_batches_and_always_the_same() -> None:
    at = moment(network("none"))
    batches = list(at.samples(20))
    assert [len(labels) for _, labels in batches] == [8, 8]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, at.samples(20), strict=True))
    assert [len(labels) for _, labels in at.samples(1)] == [8]
    assert Reading("x", 1.0).layer == "-"


def test_show_has_a_table_and_a_chart_a_meter_and_says_what_could_not_be_read(tmp_path: Path) -> None:
    line = [*SHORT, "model=mlp", "model.widths=[8]", "norm=online", "measure=[curvature,landscape]", "eval.every=0.1"]
    train(line, tmp_path / "run")
    shown = bnlab("show", "run", cwd=tmp_path).stdout
    assert "landscape: loss_range" in shown
    assert "curvature could not be read: the gradient of norm=online is not the derivative of its output" in " ".join(
        shown.split()
    )
    (row,) = [words for words in map(str.split, shown.splitlines()) if words[:1] == ["beta_smooth"]]
    curve = json.loads((tmp_path / "run" / "summary.json").read_text())["meters"]["landscape"]["curve"]
    assert float(row[1]) == pytest.approx(curve["beta_smooth"][0], rel=0.01)
    assert float(row[-1]) == pytest.approx(curve["beta_smooth"][-1], rel=0.01)


def test_list_and_explain_tell_of_every_meter(tmp_path: Path) -> None:
    assert meter_lines() == {name: (inspect.getdoc(meters[name]) or "").partition("\n")[0] for name in meters}
    told = bnlab("explain", "landscape", cwd=tmp_path).stdout
    assert "measure=landscape" in told
    assert [line.split()[0] for line in told.splitlines() if line.startswith("  loss_range")] == ["loss_range"]
    assert set(meters) <= {line.split()[0] for line in bnlab("list", "meters", cwd=tmp_path).stdout.splitlines()[1:]}


def test_a_metered_run_evaluated_again_differs_in_what_was_evaluated_only(tmp_path: Path) -> None:
    for seed in (0, 1):
        train([*SHORT, "model=mlp", "model.widths=[8]", f"seed={seed}", "measure=landscape"], tmp_path / f"{seed}")
        evaluate_again(tmp_path / f"{seed}", [{"eval.stats": "precise"}])
    (section,) = compare([tmp_path], metrics=["loss_range"], with_evaluated=True).sections
    assert section.changed == ["eval.stats"]
    assert not any("measure" in note for note in section.notes)
    assert len({row.metrics["loss_range"].value for row in section.rows}) == 1
