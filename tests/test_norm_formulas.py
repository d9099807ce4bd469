"""Every strategy against its formula, written here in float64 with plain loops and without calling bnlab."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_cases import for_each
from helpers_norms import LAYOUTS, close, ghosts_by_hand, ids, laid_out, make, moved, sample, scaled, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bnlab.norms.ghost import ghost_sizes
from bnlab.norms.strategy import strategies

# --- the formulas ---------------------------------------------------------------------------------------------------


def whitened(values: Tensor, statistics_of: Tensor, eps: float, outside: bool) -> Tensor:
    """(values - mean) / deviation with one mean and one biased variance, those of `statistics_of`."""
    n = statistics_of.numel()
    mean = statistics_of.sum() / n
    var = ((statistics_of - mean) ** 2).sum() / n
    return (values - mean) / (var.sqrt() + eps if outside else (var + eps).sqrt())


def formula(name: str, p: dict[str, Any], x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    """The training output in the dtype of `x`, one loop an independent set of statistics."""
    eps, outside = p.get("eps", 1e-5), p.get("eps_outside", False)
    n, channels = x.shape[:2]
    y = torch.empty_like(x)
    if name == "none":
        return x
    if name == "batch":
        part = x[: p.get("stat_samples") or n]
        stride = p.get("stat_stride", 1)
        part = part[:, :, ::stride, ::stride] if x.dim() == 4 else part
        columns = [whitened(x[:, c], part[:, c], eps, outside) for c in range(channels)]
        y = torch.stack(columns, 1)
    elif name == "ghost":
        rows = []
        for group in ghosts_by_hand(n, p.get("size", 32)):
            ghost = x[group]
            rows.append(torch.stack([whitened(ghost[:, c], ghost[:, c], eps, outside) for c in range(channels)], 1))
        y = torch.cat(rows)
    elif name == "instance":
        y = torch.stack([torch.stack([whitened(s[c], s[c], eps, outside) for c in range(channels)]) for s in x])
    elif name == "layer" and p.get("over", "sample") == "sample":
        y = torch.stack([whitened(s, s, eps, outside) for s in x])
    elif name == "layer":
        mean = sum(x[:, c] for c in range(channels)) / channels
        var = sum((x[:, c] - mean) ** 2 for c in range(channels)) / channels
        deviation = var.sqrt() + eps if outside else (var + eps).sqrt()
        y = torch.stack([(x[:, c] - mean) / deviation for c in range(channels)], 1)
    return scaled(y, gamma, beta)


# --- cases ----------------------------------------------------------------------------------------------------------

RUNNING: list[tuple[str, dict[str, Any]]] = [
    ("batch", {}),
    ("batch", {"momentum": 0.3, "eps": 1e-3}),
    ("batch", {"momentum": 1.0}),
    ("batch", {"momentum": None}),
    ("batch", {"affine": False}),
    ("batch", {"affine": "gamma"}),
    ("batch", {"affine": "beta", "stat_samples": 3}),
    ("batch", {"affine": "layer", "eps_outside": True}),
    ("batch", {"eps_outside": True}),
    ("batch", {"eps_outside": True, "momentum": None}),
    ("batch", {"stat_samples": 3}),
    ("batch", {"stat_samples": 3, "affine": False}),
    ("batch", {"stat_samples": 50}),
    ("batch", {"stat_stride": 2}),
    ("batch", {"stat_stride": 3, "stat_samples": 4, "momentum": None}),
    ("batch", {"stat_stride": 2, "eps_outside": True}),
    ("batch", {"unbiased": False}),
    ("batch", {"unbiased": False, "momentum": None, "eps": 1e-3}),
    ("batch", {"unbiased": False, "stat_samples": 3}),
    ("batch", {"unbiased": False, "eps_outside": True}),
    ("ghost", {"size": 4}),
    ("ghost", {"size": 2}),
    ("ghost", {"size": 4, "affine": False}),
    ("ghost", {"size": 2, "affine": "gamma"}),
    ("ghost", {"size": 4, "affine": "layer"}),
    ("ghost", {"size": 4, "eps_outside": True}),
    ("ghost", {"size": 4, "momentum": None}),
    ("ghost", {"size": 4, "update": "sequential"}),
    ("ghost", {"size": 2, "update": "sequential", "momentum": 0.4}),
    ("ghost", {"size": 3, "update": "sequential", "momentum": None}),
    ("ghost", {"size": 3, "update": "sequential", "eps_outside": True}),
    ("ghost", {"size": 40}),
    ("ghost", {"size": 40, "update": "sequential"}),
]
STATELESS: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("instance", {}),
    ("instance", {"affine": False, "eps": 1e-2}),
    ("instance", {"affine": "beta"}),
    ("instance", {"eps_outside": True}),
    ("layer", {}),
    ("layer", {"affine": False}),
    ("layer", {"eps_outside": True, "eps": 1e-2}),
    ("layer", {"affine": "layer"}),
    ("layer", {"over": "channel"}),
    ("layer", {"over": "channel", "affine": "gamma"}),
    ("layer", {"over": "channel", "affine": False}),
    ("layer", {"over": "channel", "eps_outside": True}),
]
SHAPES = [(9, 5), (10, 5), (10, 3, 5, 4)]


# --- forward, gradients, running statistics, evaluation ---------------------------------------------------------------


def defined(cases: list[Any], shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Every case on every shape that it is defined for: instance norm needs H x W."""
    pairs = [(case, shape) for case in cases for shape in shapes if case[0] != "instance" or len(shape) == 4]
    return [pytest.param(case, shape, id=f"{ids(case)}-{shape}") for case, shape in pairs]


@for_each("layout", LAYOUTS)
@for_each(("case", "shape"), defined(RUNNING + STATELESS, SHAPES))
def test_training_output_and_gradients(case: tuple[str, dict[str, Any]], shape: tuple[int, ...], layout: str) -> None:
    name, p = case
    layer = make(name, p, shape[1])
    x, out_weight = sample(shape), sample(shape, seed=2)
    actual = with_gradients(layer, laid_out(x, layout), laid_out(out_weight, layout))

    x.requires_grad_()
    gamma, beta = (None if p is None else p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    inputs = [x, *(p for p in (gamma, beta) if p is not None)]
    y = formula(name, p, x, gamma, beta)
    wanted = [y.detach(), *torch.autograd.grad((y * out_weight).sum(), inputs)]
    assert len(actual) == len(wanted)
    for a, w in zip(actual, wanted, strict=True):
        close(a, w)


@for_each("shape", SHAPES, ids=str)
@for_each("case", RUNNING, ids=ids)
def test_running_statistics_and_evaluation_after_steps(
    case: tuple[str, dict[str, Any]], shape: tuple[int, ...]
) -> None:
    name, p = case
    layer = make(name, p, shape[1])
    mean, var, done = torch.zeros(shape[1]).double(), torch.ones(shape[1]).double(), 0
    for step in range(4):
        x = sample(shape, seed=step)
        layer(laid_out(x, LAYOUTS[step % 3]))
        mean, var, done = moved(name, p, x, mean, var, done)
    state = layer.state_dict()
    close(state["running_mean"], mean)
    close(state["running_var"], var)
    assert state["num_batches_tracked"] == done

    layer.eval()
    x = sample(shape, seed=9)
    wide = (1, -1) + (1,) * (len(shape) - 2)
    eps = p.get("eps", 1e-5)
    deviation = var.sqrt() + eps if p.get("eps_outside") else (var + eps).sqrt()
    wanted = scaled((x - mean.view(wide)) / deviation.view(wide), layer.weight, layer.bias)
    for layout in LAYOUTS:
        close(layer(laid_out(x, layout)), wanted)
    close(layer(x[:1]), wanted[:1])  # does not depend on the batch
    close(layer.state_dict()["running_mean"], mean)  # and leaves the statistics as they are


# --- against torch's own layers ---------------------------------------------------------------------------------------


@for_each("momentum", [0.1, None])
def test_batch_is_torch_batch_norm(momentum: float | None) -> None:
    ours, theirs = make("batch", {"momentum": momentum}, 3, torch.float32), torch.nn.BatchNorm2d(3, momentum=momentum)
    theirs.load_state_dict(ours.state_dict())
    for step in range(3):
        x = sample((4, 3, 5, 5), step, torch.float32)
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    for key, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[key], value, atol=1e-6), key


def test_instance_and_layer_are_torch_kernels() -> None:
    x = sample((4, 6, 5, 5), dtype=torch.float32)
    layer = make("instance", {}, 6, torch.float32)
    assert torch.allclose(layer(x), F.instance_norm(x, weight=layer.weight, bias=layer.bias), atol=1e-5)
    layer = make("layer", {}, 6, torch.float32)
    assert torch.allclose(layer(x), F.group_norm(x, 1, layer.weight, layer.bias), atol=1e-5)
    layer = make("layer", {}, 6, torch.float32)
    assert torch.allclose(layer(x[:, :, 0, 0]), F.layer_norm(x[:, :, 0, 0], (6,), layer.weight, layer.bias), atol=1e-5)


# --- ghosts -----------------------------------------------------------------------------------------------------------


@for_each(
    ("samples", "size", "sizes"),
    [
        (64, 32, [32, 32]),
        (65, 32, [32, 33]),
        (70, 32, [32, 32, 6]),
        (66, 32, [32, 32, 2]),
        (33, 32, [33]),
        (31, 32, [31]),
        (1, 2, [1]),
        (5, 2, [2, 3]),
    ],
)
def test_ghost_sizes(samples: int, size: int, sizes: list[int]) -> None:
    assert ghost_sizes(samples, size) == sizes
    assert [len(g) for g in ghosts_by_hand(samples, size)] == sizes


@pytest.mark.slow
@for_each("layout", LAYOUTS)
@for_each("update", ["pooled", "sequential"])
@for_each(
    ("shape", "size"),
    [
        ((65, 4), 32),
        ((70, 4), 32),
        ((70, 4), 8),
        ((65, 4), 8),
        ((64, 4), 8),
        ((70, 3, 4, 4), 8),
        ((65, 3, 4, 4), 8),
        ((16, 40, 24, 24), 4),  # ghosts large enough to be normalized one by one
        ((19, 40, 24, 24), 4),
        ((17, 40, 24, 24), 4),
    ],
    ids=str,
)
def test_ragged_ghosts(shape: tuple[int, ...], size: int, update: str, layout: str) -> None:
    p = {"size": size, "update": update}
    layer = make("ghost", p, shape[1])
    x, out_weight = sample(shape), sample(shape, 2)
    y, dx, *_ = with_gradients(layer, laid_out(x, layout), laid_out(out_weight, layout))
    leaf = x.requires_grad_()
    wanted = formula("ghost", p, leaf, layer.weight, layer.bias)
    close(y, wanted)
    close(dx, torch.autograd.grad((wanted * out_weight).sum(), leaf)[0])
    mean, var, _ = moved("ghost", p, x.detach(), torch.zeros(shape[1]).double(), torch.ones(shape[1]).double(), 0)
    close(layer.state_dict()["running_mean"], mean)
    close(layer.state_dict()["running_var"], var)


@for_each("update", ["pooled", "sequential"])
@for_each("momentum", [0.1, None])
def test_ghost_of_the_whole_batch_is_batch(update: str, momentum: float | None) -> None:
    ghost = make("ghost", {"size": 8, "update": update, "momentum": momentum}, 3, torch.float32)
    batch = make("batch", {"momentum": momentum}, 3, torch.float32)
    for step, n in enumerate((8, 5, 1)):
        x = sample((n, 3, 4, 4), step, torch.float32)
        for a, b in zip(with_gradients(ghost, x, x), with_gradients(batch, x, x), strict=True):
            assert torch.equal(a, b)
    for key, value in batch.state_dict().items():
        assert torch.equal(ghost.state_dict()[key], value), key


# --- edges ------------------------------------------------------------------------------------------------------------

ALL = RUNNING + STATELESS


@for_each(("case", "shape"), defined(ALL, [(6, 3), (6, 3, 4, 4)]))
def test_constant_channel_has_finite_gradients(case: tuple[str, dict[str, Any]], shape: tuple[int, ...]) -> None:
    name, p = case
    layer = make(name, p, 3, torch.float32)
    x = torch.full(shape, 3.0)
    y, *gradients = with_gradients(layer, x, sample(shape, dtype=torch.float32))
    if name != "none":
        beta = torch.zeros(3) if layer.bias is None else layer.bias.detach()
        close(y, scaled(torch.zeros(shape), None, beta), 1e-4)  # the kernels subtract x * scale and mean * scale
    assert all(g.isfinite().all() for g in gradients)


@for_each("case", RUNNING, ids=ids)
@for_each("shape", [(1, 3), (1, 3, 1, 1)], ids=str)
def test_one_value_a_channel_follows_the_batch_policy(case: tuple[str, dict[str, Any]], shape: tuple[int, ...]) -> None:
    name, p = case
    layer = make(name, p, 3)
    layer(sample((9, 3, 4, 4)))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = sample(shape)
    y = layer(x)
    assert layer.num_unnormalizable == 1
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert torch.equal(y, layer.eval()(x))
    assert layer.num_unnormalizable == 1


def test_a_statistics_subset_of_one_value_follows_the_batch_policy() -> None:
    layer = make("batch", {"stat_samples": 1, "stat_stride": 4}, 3)
    x = sample((5, 3, 4, 4))
    assert torch.equal(layer(x), layer.eval()(x))
    assert layer.num_unnormalizable == 1
    assert layer.state_dict()["num_batches_tracked"] == 0


@for_each("case", [("batch", {}), ("ghost", {}), *STATELESS], ids=ids)
def test_one_sample_with_space(case: tuple[str, dict[str, Any]]) -> None:
    name, p = case
    layer = make(name, p, 3)
    x = sample((1, 3, 4, 4))
    close(layer(x), formula(name, p, x, layer.weight, layer.bias))
    assert layer.num_unnormalizable == 0


@for_each("p", [{}, {"eps_outside": True}, {"affine": False}], ids=str)
@for_each("n", [1, 4])
def test_instance_of_one_pixel_is_beta(n: int, p: dict[str, Any]) -> None:
    layer = make("instance", p, 3)
    beta = torch.zeros(3) if layer.bias is None else layer.bias.detach()
    for layout in LAYOUTS:
        close(layer(laid_out(sample((n, 3, 1, 1)), layout)), beta.view(1, 3, 1, 1).expand(n, 3, 1, 1))


@for_each("layout", LAYOUTS)
@for_each("case", ALL, ids=ids)
def test_a_large_offset_leaves_the_variance(case: tuple[str, dict[str, Any]], layout: str) -> None:
    """x = 1e4 + noise in float32: a variance formed as E[x^2] - E[x]^2 would be off by a factor, the output by 1e3."""
    name, p = case
    x = (sample((12, 24, 14, 14), dtype=torch.float32) + 1e4).detach()
    layer = make(name, p, 24, torch.float32)
    wanted = formula(
        name, p, x.double(), *(None if t is None else t.detach().double() for t in (layer.weight, layer.bias))
    )
    largest = max(1.0, 0.0 if layer.weight is None else float(layer.weight.detach().abs().max()))
    error = (layer(laid_out(x, layout)).double() - wanted).abs().max()
    # torch's batch norm adds up a channels_last channel in plain float32 order: its mean is good to 1e-6 of the offset
    assert error < 2e-2 * largest


@for_each("case", ALL, ids=ids)
@for_each("layout", LAYOUTS)
def test_bfloat16_input_has_float32_statistics(case: tuple[str, dict[str, Any]], layout: str) -> None:
    name, p = case
    layer = make(name, p, 4, torch.float32)
    x = sample((16, 4, 14, 14), dtype=torch.float32).bfloat16()
    y, *gradients = with_gradients(layer, laid_out(x, layout), torch.ones_like(x))
    assert y.dtype == gradients[0].dtype == torch.bfloat16
    parameters = (None if t is None else t.detach().double() for t in (layer.weight, layer.bias))
    close(y, formula(name, p, x.double(), *parameters), 2e-2)
    if "running_mean" in layer.state_dict():  # float32: far closer than bfloat16's 2^-8
        mean, var, _ = moved(name, p, x.double(), torch.zeros(4).double(), torch.ones(4).double(), 0)
        close(layer.state_dict()["running_mean"], mean, 1e-5)
        close(layer.state_dict()["running_var"], var, 1e-5)


@for_each("case", ALL, ids=ids)
def test_autocast_keeps_the_layout_and_trains(case: tuple[str, dict[str, Any]]) -> None:
    name, p = case
    layer = make(name, p, 4, torch.float32)
    x = laid_out(sample((8, 4, 6, 6), dtype=torch.float32).bfloat16(), "channels_last")
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)


@for_each("case", [("batch", {}), ("ghost", {"size": 2}), *STATELESS], ids=ids)
def test_wrong_input_is_refused(case: tuple[str, dict[str, Any]]) -> None:
    layer = make(*case, 4)
    with pytest.raises(ValueError, match=r"at least one value.*\(0, 4, 5, 5\)"):
        layer(torch.zeros(0, 4, 5, 5))
    with pytest.raises(ValueError, match="has 4 channels, the input has 3"):
        layer(torch.zeros(2, 3, 5, 5))
    with pytest.raises(ValueError, match=r"\(N, C\) or \(N, C, H, W\), got shape \(2, 4, 5\)"):
        layer(torch.zeros(2, 4, 5))


def test_instance_without_space_is_refused() -> None:
    with pytest.raises(ValueError, match="over the pixels"):
        make("instance", {}, 4)(torch.zeros(2, 4))


def test_share_of_the_initial_statistics() -> None:
    share = strategies["batch"](momentum=0.1).initial_share(steps=20, batch_size=64)
    assert share is not None
    assert share.share_left == pytest.approx(0.9**20)
    assert (share.momentum, share.decay) == (0.1, 0.9)
    assert share.half_life_steps == pytest.approx(math.log(2) / -math.log(0.9))
    share = strategies["ghost"](size=16, update="sequential").initial_share(steps=5, batch_size=64)
    assert share is not None
    assert share.share_left == pytest.approx(0.9**20)
    share = strategies["batch"](momentum=None).initial_share(steps=1, batch_size=64)
    assert share is not None
    assert (share.share_left, share.half_life_steps) == (0.0, None)
    share = strategies["batch"](momentum=1.0).initial_share(steps=1, batch_size=64)
    assert share is not None
    assert (share.share_left, share.half_life_steps) == (0.0, 0.0)
    assert strategies["layer"]().initial_share(steps=1, batch_size=64) is None


# --- random shapes ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    case=st.sampled_from(ALL),
    n=st.integers(2, 14),
    channels=st.integers(1, 5),
    space=st.one_of(st.none(), st.tuples(st.integers(1, 5), st.integers(1, 5))),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_random_shapes(
    case: tuple[str, dict[str, Any]],
    n: int,
    channels: int,
    space: tuple[int, int] | None,
    layout: str,
    seed: int,
) -> None:
    name, p = case
    shape = (n, channels, *(space or ()))
    if name == "instance" and space is None:
        return
    layer = make(name, p, channels)
    x = sample(shape, seed)
    y = layer(laid_out(x, layout))
    assert y.shape == x.shape
    if layer.num_unnormalizable == 0:
        close(y, formula(name, p, x, layer.weight, layer.bias), 1e-7)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 40), size=st.integers(2, 12), seed=st.integers(0, 1000))
def test_pooled_running_statistics_are_those_of_the_batch(n: int, size: int, seed: int) -> None:
    x = sample((n, 3, 2, 2), seed)
    ghost, batch = make("ghost", {"size": size}, 3), make("batch", {}, 3)
    ghost(x)
    batch(x)
    for key, value in batch.state_dict().items():
        close(ghost.state_dict()[key], value)
