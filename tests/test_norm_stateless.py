"""The stateless strategies group, rms, frn, dyt, weight_std: against loops in float64, and inside the models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_cases import for_each
from helpers_norms import LAYOUTS, close, ids, laid_out, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnlab.errors import IncompatibleError
from bnlab.models.cnn import Cnn
from bnlab.models.mlp import Mlp
from bnlab.models.model import Conv, ModelSpec, build
from bnlab.models.resnet import Resnet
from bnlab.norms.frn import Threshold
from bnlab.norms.group import GroupNorm
from bnlab.norms.rms import RootMeanSquare, RootMeanSquareOfRows
from bnlab.norms.strategy import NormLayer, NormModule, strategies
from bnlab.training.optim import AdamW, Sgd

Case = tuple[str, dict[str, Any]]

# --- the formulas ---------------------------------------------------------------------------------------------------


def divisor(mean_square: Tensor, p: dict[str, Any]) -> Tensor:
    eps = p.get("eps", 1e-5)
    return mean_square.sqrt() + eps if p.get("eps_outside") else (mean_square + eps).sqrt()


def whitened(values: Tensor, p: dict[str, Any]) -> Tensor:
    mean = values.sum() / values.numel()
    return (values - mean) / divisor(((values - mean) ** 2).sum() / values.numel(), p)


def sized(values: Tensor, p: dict[str, Any]) -> Tensor:
    return values / divisor((values**2).sum() / values.numel(), p)


def formula(case: Case, x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """One loop an independent set of values; `parameters` as the layer names them."""
    name, p = case
    if name in ("group", "weight_std"):
        each = x.shape[1] // p.get("groups", 8)
        y = torch.stack([torch.cat([whitened(part, p) for part in sample.split(each)]) for sample in x])
    elif name == "rms" and (p.get("over", "sample") == "sample" or x.dim() == 2):
        y = torch.stack([sized(sample, p) for sample in x])
    elif name == "rms":
        mean_square = sum(x[:, c] ** 2 for c in range(x.shape[1])) / x.shape[1]
        y = torch.stack([x[:, c] / divisor(mean_square, p) for c in range(x.shape[1])], 1)
    elif name == "frn":
        y = torch.stack([torch.stack([sized(channel, p) for channel in sample]) for sample in x])
    else:
        y = torch.tanh(parameters["alpha"] * x)
    wide = (1, -1) + (1,) * (x.dim() - 2)
    y = y * parameters["weight"].view(wide) if "weight" in parameters else y
    return y + parameters["bias"].view(wide) if "bias" in parameters else y


CASES: list[Case] = [
    ("group", {"groups": 4}),
    ("group", {"groups": 2, "affine": False}),
    ("group", {"groups": 4, "eps_outside": True}),
    ("group", {"groups": 2, "eps_outside": True, "affine": False, "eps": 1e-2}),
    ("group", {"groups": 1}),
    ("group", {}),
    ("weight_std", {"groups": 4}),
    ("rms", {}),
    ("rms", {"affine": False, "eps": 1e-2}),
    ("rms", {"eps_outside": True}),
    ("rms", {"over": "channel"}),
    ("rms", {"over": "channel", "affine": False}),
    ("rms", {"over": "channel", "eps_outside": True, "eps": 1e-2}),
    ("frn", {}),
    ("frn", {"affine": False}),
    ("frn", {"eps_outside": True}),
    ("dyt", {}),
    ("dyt", {"alpha": 1.3, "affine": False}),
    ("dyt", {"eps_outside": True}),
]
SHAPES = [(9, 8), (1, 8), (5, 8, 4, 3), (1, 8, 3, 3), (4, 8, 1, 1)]


def defined(shapes: list[tuple[int, ...]]) -> list[tuple[Case, tuple[int, ...]]]:
    return [(case, shape) for case in CASES for shape in shapes if case[0] != "frn" or len(shape) == 4]


def named(value: object) -> str:
    return ids(value) if isinstance(value, tuple) and isinstance(value[0], str) else str(value)


def randomized(module: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return module


def make(case: Case, channels: int = 8, dtype: torch.dtype = torch.float64) -> NormLayer:
    layer = randomized(strategies[case[0]](**case[1]).layer(channels).to(dtype))
    assert isinstance(layer, NormLayer)
    return layer


def measured(layer: NormLayer, x: Tensor, out_weight: Tensor) -> dict[str, Tensor]:
    """Output and gradients of sum(out_weight * layer(x))."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(out_weight.to(y.dtype))
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **{k: p.grad for k, p in layer.named_parameters() if p.grad is not None}}


def expected(case: Case, layer: NormLayer, x: Tensor, out_weight: Tensor) -> dict[str, Tensor]:
    """The same in float64 from the formula by autograd."""
    x = x.detach().double().requires_grad_()
    parameters = {k: p.detach().double().requires_grad_() for k, p in layer.named_parameters()}
    y = formula(case, x, parameters)
    gradients = torch.autograd.grad((y * out_weight.double()).sum(), [x, *parameters.values()])
    return {"y": y.detach(), **dict(zip(["x", *parameters], gradients, strict=True))}


def same(actual: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert actual.keys() == wanted.keys()
    for key, value in wanted.items():
        close(actual[key], value, tolerance)


def keeps_layout(y: Tensor, x: Tensor) -> bool:
    return all(
        y.is_contiguous(memory_format=f)
        for f in (torch.contiguous_format, torch.channels_last)
        if (x.dim() == 4 or f is torch.contiguous_format) and x.is_contiguous(memory_format=f)
    )


# --- outputs and gradients ------------------------------------------------------------------------------------------


@for_each("layout", LAYOUTS)
@for_each(("case", "shape"), defined(SHAPES), ids=named)
def test_output_and_gradients(case: Case, shape: tuple[int, ...], layout: str) -> None:
    layer, out_weight = make(case), sample(shape, 2)
    x = laid_out(sample(shape), layout)
    for outer in LAYOUTS:  # the gradient may come in a layout of its own
        actual = measured(layer, x, laid_out(out_weight, outer))
        same(actual, expected(case, layer, x, out_weight), 1e-7 if shape[2:] == (1, 1) else 1e-9)
        assert keeps_layout(actual["y"], x)
    assert keeps_layout(measured(layer, x, laid_out(out_weight, layout))["x"], x)
    close(layer.eval()(x), layer.train()(x), 0.0)


@for_each("layout", LAYOUTS)
@for_each(("case", "shape"), defined([(9, 8), (5, 8, 4, 3)]), ids=named)
def test_float32_and_bfloat16(case: Case, shape: tuple[int, ...], layout: str) -> None:
    """Parameters in float32. In bfloat16 only input, output and input gradient are rounded, never what is summed."""
    layer = make(case, dtype=torch.float32)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2**-7)):
        x, out_weight = laid_out(sample(shape, dtype=dtype), layout), laid_out(sample(shape, 2, dtype), layout)
        actual, wanted = measured(layer, x, out_weight), expected(case, layer, x, out_weight)
        assert actual["y"].dtype == actual["x"].dtype == dtype
        assert keeps_layout(actual["y"], x)
        assert keeps_layout(actual["x"], x)
        same(actual, wanted, tolerance)
        for key in set(wanted) - {"x", "y"}:
            assert actual[key].dtype == torch.float32
            close(actual[key], wanted[key], 2e-4)


@for_each("case", CASES, ids=ids)
def test_autocast_computes_in_float32(case: Case) -> None:
    for shape, layout in [((6, 8), "contiguous"), ((6, 8, 5, 5), "contiguous"), ((6, 8, 5, 5), "channels_last")]:
        if case[0] == "frn" and len(shape) == 2:
            continue
        layer = make(case, dtype=torch.float32)
        x, out_weight = (laid_out(sample(shape, s, torch.bfloat16), layout) for s in (0, 2))
        plain = measured(layer, x, out_weight)
        with torch.autocast("cpu", torch.bfloat16):
            cast = measured(layer, x, out_weight)
            assert layer(x.float()).dtype == torch.float32
        assert cast["y"].dtype == torch.bfloat16
        for key, value in plain.items():
            assert torch.equal(cast[key], value), key


@for_each("layout", LAYOUTS)
@for_each("case", CASES, ids=ids)
def test_a_large_offset_keeps_the_precision(case: Case, layout: str) -> None:
    x = sample((12, 24, 14, 14), dtype=torch.float32) + 1e4
    layer, p = make(case, 24, torch.float32), dict(layer_parameters(make(case, 24, torch.float32)))
    error = (layer(laid_out(x, layout)).double() - formula(case, x.double(), p)).abs().max()
    assert error < 2e-3 * max(1.0, *(float(v.abs().max()) for v in p.values()), 1.0)


def layer_parameters(layer: NormLayer) -> list[tuple[str, Tensor]]:
    return [(k, p.detach().double()) for k, p in layer.named_parameters()]


@for_each(("case", "shape"), defined([(6, 8), (6, 8, 4, 4), (2, 8, 1, 1)]), ids=named)
def test_constant_and_zero_channels_have_finite_gradients(case: Case, shape: tuple[int, ...]) -> None:
    for value in (0.0, 3.0):
        for layout in LAYOUTS:
            layer, x = make(case, dtype=torch.float32), laid_out(torch.full(shape, value), layout)
            out_weight = sample(shape, dtype=torch.float32)
            for tensor in measured(layer, x, out_weight).values():
                assert tensor.isfinite().all()
            wanted = formula(case, x.double(), dict(layer_parameters(layer)))
            close(layer(x), wanted, 1e-4)


@for_each("case", CASES, ids=ids)
def test_wrong_input_is_refused(case: Case) -> None:
    layer = make(case)
    with pytest.raises(ValueError, match=r"at least one value.*\(0, 8, 5, 5\)"):
        layer(torch.zeros(0, 8, 5, 5))
    with pytest.raises(ValueError, match="has 8 channels, the input has 3"):
        layer(torch.zeros(2, 3, 5, 5))


# --- the functions by finite differences -----------------------------------------------------------------------------


@for_each("layout", LAYOUTS[:2])
@for_each("eps_outside", [False, True])
@for_each("affine", [False, True])
def test_gradients_by_finite_differences(layout: str, eps_outside: bool, affine: bool) -> None:
    x = laid_out(sample((2, 4, 2, 2)), layout).detach().requires_grad_()
    gamma, beta = (sample((4,), s).requires_grad_() if affine else None for s in (3, 4))
    for dims in ((2, 3), (1, 2, 3), (1,)):
        assert torch.autograd.gradcheck(
            lambda *t, dims=dims: RootMeanSquare.apply(*t, dims, 1e-5, eps_outside), (x, gamma, beta)
        )
    for groups in (1, 2, 4):
        assert torch.autograd.gradcheck(
            lambda *t, groups=groups: GroupNorm.apply(*t, groups, 1e-5, eps_outside), (x, gamma, beta)
        )
    assert torch.autograd.gradcheck(lambda *t: RootMeanSquareOfRows.apply(*t, 1e-5), (x.transpose(1, 3), gamma))
    assert torch.autograd.gradcheck(Threshold.apply, (x, sample((4,), 5).requires_grad_()))


# --- oracles ----------------------------------------------------------------------------------------------------------


@for_each("layout", LAYOUTS)
@for_each("p", [{}, {"affine": False}, {"eps_outside": True}], ids=str)
def test_group_at_its_ends_is_layer_and_instance(p: dict[str, Any], layout: str) -> None:
    x, out_weight = laid_out(sample((5, 6, 4, 3)), layout), sample((5, 6, 4, 3), 2)
    one, all_ = make(("group", {"groups": 1, **p}), 6), make(("group", {"groups": 6, **p}), 6)
    same(measured(one, x, out_weight), measured(make(("layer", p), 6), x, out_weight))
    same(measured(all_, x, out_weight), measured(make(("instance", p), 6), x, out_weight))
    flat, out_weight = x[:, :, 0, 0], out_weight[:, :, 0, 0]
    same(measured(one, flat, out_weight), measured(make(("layer", p), 6), flat, out_weight))
    beta = torch.zeros(6) if all_.bias is None else all_.bias.detach()
    close(all_(flat), beta.expand(5, 6))


def test_group_and_rms_are_torch_kernels() -> None:
    x = sample((5, 8, 4, 3), dtype=torch.float32)
    group, rms = make(("group", {"groups": 4}), 8, torch.float32), make(("rms", {}), 8, torch.float32)
    close(group(x), F.group_norm(x, 4, group.weight, group.bias), 1e-5)
    close(group(x[:, :, 0, 0]), F.group_norm(x[:, :, 0, 0], 4, group.weight, group.bias), 1e-5)
    assert rms.weight is not None
    close(rms(x), F.rms_norm(x, (8, 4, 3), rms.weight.view(8, 1, 1).expand(8, 4, 3), 1e-5), 1e-5)


@for_each("name", ["group", "weight_std"])
def test_groups_that_do_not_divide_are_refused(name: str) -> None:
    with pytest.raises(IncompatibleError) as error:
        strategies[name](groups=8).layer(12)
    message = str(error.value)
    assert "norm.groups=8" in message
    assert "has 12" in message
    assert "1, 2, 3, 4, 6, 12" in message
    assert len(message.splitlines()) <= 3
    with pytest.raises(IncompatibleError, match=r"norm\.groups=16: .*has 8"):
        strategies[name](groups=16).layer(8)


def test_rms_has_no_beta() -> None:
    assert [k for k, _ in strategies["rms"]().layer(4).named_parameters()] == ["weight"]
    assert list(strategies["rms"](affine=False).layer(4).parameters()) == []


def test_dyt_learns_one_slope_a_layer() -> None:
    assert dict(strategies["dyt"](affine=False, alpha=0.7).layer(4).named_parameters()).keys() == {"alpha"}
    layer = strategies["dyt"]().layer(4)
    assert {k: p.numel() for k, p in layer.named_parameters()} == {"weight": 4, "bias": 4, "alpha": 1}
    x = sample((3, 4), dtype=torch.float32)
    close(layer(x), torch.tanh(0.5 * x), 1e-6)
    close(strategies["dyt"](alpha=2.0).layer(4)(x), torch.tanh(2 * x), 1e-6)
    assert torch.equal(layer(x), strategies["dyt"](eps=0.5, eps_outside=True).layer(4)(x))


def test_frn_without_space_is_refused() -> None:
    with pytest.raises(ValueError, match=r"over the pixels.*\(2, 4\)"):
        strategies["frn"]().layer(4)(torch.zeros(2, 4))


# --- the activation of frn --------------------------------------------------------------------------------------------


@for_each("layout", LAYOUTS)
@for_each("shape", [(6, 4), (6, 4, 3, 5)], ids=str)
@for_each("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_thresholded_linear_unit(dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    unit = strategies["frn"]().activation(4)
    assert isinstance(unit, NormModule)
    y = laid_out(sample(shape, dtype=dtype), layout).detach().requires_grad_()
    out_weight = sample(shape, 2, dtype)
    assert torch.equal(unit(y), F.relu(y))  # tau = 0 at the start
    randomized(unit)
    (tau,) = unit.parameters()
    z = unit(y)
    z.backward(out_weight)
    threshold = tau.detach().to(dtype).view(-1, *(1,) * (len(shape) - 2)).expand(shape)
    above = y > threshold
    assert z.dtype == dtype
    assert keeps_layout(z, y)
    assert torch.equal(z, torch.where(above, y, threshold))
    assert y.grad is not None
    assert tau.grad is not None
    assert torch.equal(y.grad, torch.where(above, out_weight, 0))
    below = torch.where(above, 0, out_weight).double().transpose(0, 1).flatten(1).sum(1)
    close(tau.grad, below, 2**-7 if dtype is torch.bfloat16 else 1e-5)


# --- weight standardization -------------------------------------------------------------------------------------------


def standardized_by_hand(weight: Tensor, p: dict[str, Any]) -> Tensor:
    return torch.stack([whitened(row, p) for row in weight])


@for_each("layout", LAYOUTS)
@for_each("shape", [(6, 10), (6, 4, 3, 3)], ids=str)
@for_each("p", [{}, {"eps": 1e-2}, {"eps_outside": True}], ids=str)
def test_weights_are_standardized_with_gradient(p: dict[str, Any], shape: tuple[int, ...], layout: str) -> None:
    transform = strategies["weight_std"](**p).weight_transform
    assert transform is not None
    weight = laid_out(sample(shape), layout).detach().requires_grad_()
    out_weight = sample(shape, 2)
    made = transform(weight)
    assert keeps_layout(made, weight)
    wanted = standardized_by_hand(weight, p)
    close(made, wanted)
    close(
        torch.autograd.grad((made * out_weight).sum(), weight)[0],
        torch.autograd.grad((wanted * out_weight).sum(), weight)[0],
    )
    for tensor in (transform(torch.full(shape, 3.0, requires_grad=True)), transform(torch.zeros(shape))):
        assert torch.equal(tensor, torch.zeros(shape))


# --- in the models ----------------------------------------------------------------------------------------------------

IMAGE = (3, 8, 8)
MODELS: list[ModelSpec] = [Mlp(widths=(16, 24)), Cnn(widths=(8, 16), depth=2), Resnet(depth=8, width=8)]
NAMES = ["group", "rms", "frn", "dyt", "weight_std"]
FITTING = [(spec, name) for spec in MODELS for name in NAMES if name != "frn" or spec.has_space]


def built(spec: ModelSpec, name: str, **p: Any) -> nn.Sequential:
    model = build(spec, strategies[name](**p), IMAGE, 10, 0)
    assert isinstance(model, nn.Sequential)
    return model


@for_each(("spec", "name"), FITTING, ids=lambda v: v if isinstance(v, str) else v.name)
def test_models_train_and_copy(spec: ModelSpec, name: str) -> None:
    """The loss falls, every parameter moves, a deep copy is on its own, evaluation is training."""
    model, x, labels = built(spec, name), sample((16, *IMAGE), dtype=torch.float32), torch.arange(16) % 10
    copied = copy.deepcopy(model)
    before = copied.state_dict()
    optimizer = Sgd(lr=0.02).make(model)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert float(F.cross_entropy(copied(x), labels).detach()) == pytest.approx(losses[0], rel=1e-6)
    copied.load_state_dict(model.state_dict())
    close(copied.eval()(x), model.train()(x), 1e-6)


@for_each("placement", ["pre", "post"])
def test_layers_compute_with_standardized_weights(placement: str) -> None:
    """Blocks of an MLP and a CNN written out; the last layer has no norm behind it and keeps its weights."""
    x = sample((5, *IMAGE), dtype=torch.float32)
    for spec in (Mlp(widths=(16, 24), placement=placement), Cnn(widths=(8, 16), placement=placement)):  # type: ignore[arg-type]
        model = built(spec, "weight_std", groups=4)
        value = x
        for module in model:
            if isinstance(module, nn.Linear) and module is not model[-1]:
                value = F.linear(value, standardized_by_hand(module.weight, {}), module.bias)
            elif isinstance(module, nn.Conv2d):
                value = F.conv2d(value, standardized_by_hand(module.weight, {}), module.bias, padding=1)
            elif isinstance(module, NormLayer):
                value = formula(("group", {"groups": 4}), value, dict(module.named_parameters()))
            elif module is model[-1]:
                value = F.linear(value, module.weight, module.bias)  # type: ignore[arg-type]
            else:
                value = module(value)
        close(model(x), value, 1e-4)


def test_the_scale_and_mean_of_weights_have_no_effect() -> None:
    x = sample((5, *IMAGE))
    model = built(MODELS[2], "weight_std").double()
    before = model(x)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(3).add_(0.5)
    close(model(x), before, 1e-3)  # but for eps, next to variances of 0.02 to 0.07


def test_only_normalized_layers_are_standardized() -> None:
    model = built(Mlp(widths=(8, 8, 8, 8), norm_every=2), "weight_std")
    transformed = [m.weight_transform is not None for m in model if isinstance(m, nn.Linear)]  # type: ignore[union-attr]
    assert transformed == [False, True, False, True, False]


def test_frn_brings_its_activation() -> None:
    """It stands in the place of ReLU, in a residual block behind the addition."""
    cnn = built(Cnn(widths=(8, 16)), "frn")
    assert [type(m).__name__ for m in cnn[:4]] == ["Conv", "FrnLayer", "ThresholdedLinear", "MaxPool2d"]
    resnet = built(MODELS[2], "frn")
    assert not any(isinstance(m, nn.ReLU) for m in resnet.modules())
    block = resnet[3]
    randomized(block)
    x = sample((2, 8, 4, 4), dtype=torch.float32)
    first, frn1, unit1, second, frn2 = block.branch
    inner = torch.maximum(frn1(first(x)), unit1.tau.view(-1, 1, 1))
    close(block(x), torch.maximum(frn2(second(inner)) + x, block.after[0].tau.view(-1, 1, 1)), 1e-5)
    assert block.after[0].tau.abs().min() > 0


@for_each(
    ("spec", "named"),
    [
        (Cnn(placement="post"), "model.placement=post"),
        (Resnet(activation="elu"), "model.activation=elu"),
        (Mlp(), "model=mlp"),
    ],
    ids=str,
)
def test_frn_refuses_models_it_does_not_fit(spec: ModelSpec, named: str) -> None:
    with pytest.raises(IncompatibleError) as error:
        built(spec, "frn")
    assert "norm=frn" in str(error.value)
    assert named in str(error.value)


@for_each(("spec", "name"), FITTING, ids=lambda v: v if isinstance(v, str) else v.name)
def test_parameters_of_the_strategy_are_spared_weight_decay(spec: ModelSpec, name: str) -> None:
    model = built(spec, name)
    for optimizer in (Sgd(), AdamW()):
        decayed, spared = optimizer.groups(model)
        assert spared["weight_decay"] == 0.0
        mine = {k: p for k, p in model.named_parameters() if any(p is q for q in spared["params"])}
        layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert {id(p) for p in decayed["params"]} == {id(p) for m in layers for p in m.parameters()}
        wanted = {"group": "weight bias", "rms": "weight", "frn": "weight bias tau", "dyt": "weight bias alpha"}
        wanted["weight_std"] = wanted["group"]
        assert {k.rpartition(".")[2] for k in mine} == set(wanted[name].split())


# --- random shapes ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from(["group", "rms", "frn", "dyt", "weight_std"]),
    over=st.sampled_from(["sample", "channel"]),
    n=st.integers(1, 6),
    groups=st.integers(1, 4),
    each=st.integers(1, 3),
    space=st.one_of(st.none(), st.tuples(st.integers(1, 5), st.integers(1, 5))),
    layout=st.sampled_from(LAYOUTS),
    common=st.fixed_dictionaries(
        {"affine": st.booleans(), "eps_outside": st.booleans(), "eps": st.sampled_from([1e-5, 1e-2])}
    ),
    seed=st.integers(0, 1000),
)
def test_random_shapes(
    name: str,
    over: str,
    n: int,
    groups: int,
    each: int,
    space: tuple[int, int] | None,
    layout: str,
    common: dict[str, Any],
    seed: int,
) -> None:
    if name == "frn" and space is None:
        space = (2, 2)
    own = {"rms": {"over": over}, "group": {"groups": groups}, "weight_std": {"groups": groups}}
    case = (name, {**common, **own.get(name, {})})
    shape = (n, groups * each, *(space or ()))
    layer, x, out_weight = make(case, groups * each), laid_out(sample(shape, seed), layout), sample(shape, seed + 1)
    actual, wanted = measured(layer, x, out_weight), expected(case, layer, x, out_weight)
    if name in ("group", "weight_std") and x[0].numel() == groups:
        wanted = {k: v.nan_to_num() for k, v in wanted.items()}  # one value: the formula's sqrt(0) has no gradient
    same(actual, wanted, 1e-6)
    assert keeps_layout(actual["y"], x)


@for_each("inputs", [1, 3])
@for_each("layout", [torch.contiguous_format, torch.channels_last])
def test_standardized_weights_keep_their_strides(inputs: int, layout: torch.memory_format) -> None:
    transform = strategies["weight_std"]().weight_transform
    assert transform is not None
    conv = Conv(inputs, 8, 3)
    nn.init.normal_(conv.weight)
    weight = conv.to(memory_format=layout).weight
    assert transform(weight).stride() == weight.stride()
