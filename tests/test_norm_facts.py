"""Each strategy's declared facts, proved on random tensors: a fact that is declared and false fails here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_cases import for_each
from torch import Tensor

from bnlab.measure.layer_statistics import adopt
from bnlab.norms.running import RunningLayer
from bnlab.norms.strategy import NormLayer, strategies

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "batch": [{"stat_samples": 4}, {"stat_stride": 2}, {"momentum": None}],
    "ghost": [{"size": 4}, {"size": 4, "update": "sequential"}],
    "layer": [{"over": "channel"}],
    "sync": [{"momentum": None}],
    "group": [{"groups": 1}, {"groups": 2}],
    "rms": [{"over": "channel"}],
    "renorm": [{"r_max": 1.0, "d_max": 0.0}, {"momentum": None}],
    "streaming": [{"momentum": 1.0}],
    "online": [{"forward_decay": 0.9}],
}
CASES = [
    (name, p) for name in strategies for p in [{}, {"eps_outside": True}, {"affine": False}, *VARIANTS.get(name, [])]
]
N, C = 12, 24  # three channels in each of the eight groups of group normalization


def ids(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())])


def inputs(name: str, p: dict[str, Any]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    space = torch.randn(N, C, 6, 6, generator=draw, dtype=torch.float64)
    return [space] if strategies[name](**p).facts.needs_space else [space, space[:, :, 0, 0]]


def fresh(name: str, p: dict[str, Any]) -> NormLayer:
    return strategies[name](**p).layer(C).double()


def settled(name: str, p: dict[str, Any], x: Tensor) -> NormLayer:
    """A fresh layer; one that reads the training set has `x` for it."""
    layer = fresh(name, p)
    if isinstance(layer, RunningLayer) and strategies[name](**p).facts.reads_training_set:
        adopt(layer, x.transpose(0, 1).flatten(1).mean(1), x.transpose(0, 1).flatten(1).var(1))
    return layer


@for_each("case", CASES, ids=ids)
def test_reads_batch(case: tuple[str, dict[str, Any]]) -> None:
    """Every sample but the last changes, as an order in the batch may matter: the output for the last tells."""
    name, p = case
    for x in inputs(name, p):
        other = x.clone()
        other[:-1] = other[:-1] * 50 + 7  # far enough that renorm's bounds clip; within them it is evaluation
        reads = not torch.allclose(fresh(name, p)(x)[-1], fresh(name, p)(other)[-1])
        assert reads == strategies[name](**p).facts.reads_batch
        assert torch.allclose(fresh(name, p).eval()(x)[-1], fresh(name, p).eval()(other)[-1])  # evaluation never does


@for_each("case", CASES, ids=ids)
def test_keeps_stats(case: tuple[str, dict[str, Any]]) -> None:
    """Statistics move by training steps, or are put in from outside; evaluation shows it."""
    name, p = case
    facts = strategies[name](**p).facts
    for x in inputs(name, p):
        layer = fresh(name, p)
        before = layer.eval()(x)
        layer.train()(x * 2 + 1)
        assert (not torch.allclose(before, layer.eval()(x))) == (facts.keeps_stats and not facts.reads_training_set)
        assert (not torch.allclose(before, settled(name, p, x * 2 + 1).eval()(x))) == facts.reads_training_set
        assert bool(list(layer.buffers())) == facts.keeps_stats


@for_each("case", CASES, ids=ids)
def test_training_is_evaluation_unless_the_batch_is_read(case: tuple[str, dict[str, Any]]) -> None:
    name, p = case
    for x in inputs(name, p):
        layer = settled(name, p, x)
        same = torch.allclose(layer.train()(x), layer.eval()(x))
        assert same != strategies[name](**p).facts.reads_batch


@for_each("case", CASES, ids=ids)
def test_adds_noise(case: tuple[str, dict[str, Any]]) -> None:
    """Samples that are all 0, as the mean then is, come out alike in training where nothing is added to them."""
    name, p = case
    for x in inputs(name, p):
        y = fresh(name, p)(torch.zeros_like(x))
        assert torch.allclose(y, y[:1].expand_as(x)) != strategies[name](**p).facts.adds_noise


@for_each("case", CASES, ids=ids)
def test_cancels_bias(case: tuple[str, dict[str, Any]]) -> None:
    """A bias that differs from channel to channel, as a convolution's does. A shift common to all is another matter."""
    name, p = case
    for x in inputs(name, p):
        bias = torch.linspace(-2, 3, C).double().view(1, C, *(1,) * (x.dim() - 2)).requires_grad_()
        follows = strategies[name](**p).facts.refreshes
        moved = settled(name, p, x + bias.detach() if follows else x)(x + bias)
        (gradient,) = torch.autograd.grad((moved * x.sin()).sum(), bias)
        dead = torch.allclose(settled(name, p, x)(x), moved) or torch.allclose(gradient, torch.zeros_like(gradient))
        assert dead == strategies[name](**p).facts.cancels_bias


@for_each("case", CASES, ids=ids)
def test_needs_batch(case: tuple[str, dict[str, Any]]) -> None:
    """One value a channel: the running statistics serve, which is counted; or the strategy has an answer of its own."""
    name, p = case
    if strategies[name](**p).facts.needs_space:
        return
    layer = fresh(name, p)
    assert layer(torch.ones(1, C, dtype=torch.float64)).isfinite().all()
    assert bool(layer.num_unnormalizable) == strategies[name](**p).facts.needs_batch


@for_each("case", CASES, ids=ids)
def test_needs_space(case: tuple[str, dict[str, Any]]) -> None:
    name, p = case
    flat = torch.randn(N, C, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if strategies[name](**p).facts.needs_space:
        with pytest.raises(ValueError, match=r"\(12, 24\)"):
            fresh(name, p)(flat)
    else:
        assert fresh(name, p)(flat).shape == flat.shape


def test_layer_cancels_a_shift_common_to_all_channels_only() -> None:
    for over in ("sample", "channel"):
        layer = strategies["layer"](over=over).layer(C).double()
        x = inputs("layer", {})[0]
        assert torch.allclose(layer(x), layer(x + 3))
        assert not torch.allclose(layer(x), layer(x + torch.linspace(-2, 3, C).double().view(1, C, 1, 1)))


def test_a_layer_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    for name in strategies:
        strategies[name]().layer(C)
    assert torch.equal(before, torch.get_rng_state())


def test_every_strategy_has_the_same_defaults() -> None:
    for name in strategies:
        strategy = strategies[name]()
        assert (strategy.name, strategy.eps, strategy.affine, strategy.eps_outside) == (name, 1e-5, "true", False)
