"""What of gamma and beta is learned, under every strategy: the full layer, with the rest held at its start."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers_cases import for_each
from helpers_norms import LAYOUTS, close, laid_out, sample
from helpers_training import train
from torch import Tensor

from bnlab.errors import IncompatibleError
from bnlab.measure.folding import folded
from bnlab.models.model import build, models
from bnlab.norms.strategy import NormLayer, strategies
from bnlab.record.read import read_documents

C = 24
LEARNED = [n for n in strategies if n != "none"]
SHAPES = {name: [(9, C, 5, 4)] + [(9, C)] * (not strategies[name]().facts.needs_space) for name in LEARNED}


def pair(name: str, affine: str) -> tuple[NormLayer, NormLayer]:
    """A layer that learns a part, and the full layer that computes the same."""
    part, full = (strategies[name](affine=word).layer(C).double() for word in (affine, "true"))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for learned, whole in ((part.weight, full.weight), (part.bias, full.bias)):
            if learned is not None and whole is not None:
                learned.copy_(torch.randn(learned.shape, generator=draw))
                whole.copy_(learned.expand(C))
    return part, full


def step(layer: NormLayer, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Output and gradients: of the input, gamma and beta."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * weights).sum().backward()
    assert x.grad is not None
    gradients = [None if p is None else p.grad for p in (layer.weight, layer.bias)]
    return y.detach(), x.grad, *gradients


@for_each("affine", ["gamma", "beta", "layer"])
@for_each("name", LEARNED)
def test_a_part_is_the_whole_with_the_rest_at_its_start(name: str, affine: str) -> None:
    if (name, affine) == ("rms", "beta"):
        return
    for shape, layout in product(SHAPES[name], LAYOUTS):
        part, full = pair(name, affine)
        x, weights = laid_out(sample(shape), layout), laid_out(sample(shape, seed=2), layout)
        got, wanted = step(part, x, weights), step(full, x, weights)
        close(got[0], wanted[0])
        close(got[1], wanted[1])
        for own, whole, learned in zip(got[2:], wanted[2:], (part.weight, part.bias), strict=True):
            assert (own is None) == (learned is None)
            if own is not None and whole is not None:
                close(own, whole.sum(0, keepdim=True) if affine == "layer" else whole, 1e-9)
        close(part.eval()(x), full.eval()(x))
        maps = [layer.affine_map() for layer in (part, full)]
        for ours, theirs in zip(*(m or () for m in maps), strict=True):
            close(ours.expand(C), theirs)


@for_each("affine", ["gamma", "beta", "layer"])
@for_each("name", ["batch", "ghost", "layer", "group", "rms", "frn", "streaming"])
def test_a_part_has_second_derivatives(name: str, affine: str) -> None:
    """By finite differences of the gradient along a direction, in float64."""
    if (name, affine) == ("rms", "beta"):
        return
    layer, _ = pair(name, affine)
    x, along = sample((6, C, 3, 3)), sample((6, C, 3, 3), seed=3)

    def slope(distance: float, again: bool = False) -> tuple[Tensor, Tensor]:
        leaf = (x + distance * along).requires_grad_()
        y = copy.deepcopy(layer)(leaf).sin().sum()
        return leaf, torch.autograd.grad(y, leaf, create_graph=again)[0]

    leaf, gradient = slope(0.0, again=True)
    (product_,) = torch.autograd.grad((gradient * along).sum(), leaf)
    by_difference = (slope(1e-5)[1] - slope(-1e-5)[1]) / 2e-5
    torch.testing.assert_close(product_, by_difference.detach(), rtol=1e-4, atol=1e-5)


def test_what_is_learned_is_all_there_is() -> None:
    shapes = {
        "true": {"weight": (C,), "bias": (C,)},
        "false": {},
        "gamma": {"weight": (C,)},
        "beta": {"bias": (C,)},
        "layer": {"weight": (1,), "bias": (1,)},
    }
    for affine, expected in shapes.items():
        layer = strategies["batch"](affine=affine).layer(C)
        assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == expected
    assert strategies["batch"](affine=False).affine == "false"
    assert strategies["batch"](affine=True).layer(3).extra_repr() == "3, eps=1e-05, affine=true"


def test_rms_has_no_beta_to_learn_alone() -> None:
    with pytest.raises(IncompatibleError, match=r"norm.affine=beta: norm=rms has no beta\n"):
        strategies["rms"](affine="beta")


@for_each("affine", ["gamma", "beta", "layer"])
def test_a_part_is_folded(affine: str) -> None:
    model = build(models["cnn"](widths=(4, 6)), strategies["batch"](affine=affine), (1, 8, 8), 10, 0).double()
    x = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
        model(x)
    model.eval()
    close(folded(model)(x), model(x), 1e-9)


def test_a_run_learns_one_pair_a_layer(tmp_path: Path) -> None:
    keys = ["data=digits", "model=mlp", "model.widths=[8,8]", "norm=batch", "norm.affine=layer", "trainer.steps=5"]
    assert train([*keys, "trainer.threads=1", "eval.probe_samples=64"], tmp_path).state == "done"
    _, summary = read_documents(tmp_path)
    assert summary["num_parameters"] == 64 * 8 + 8 * 8 + 8 * 10 + 10 + 2 * 2
    assert summary["affine"]["gamma_drift"] > 0
    assert summary["affine"]["beta_max"] > 0
