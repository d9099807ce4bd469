"""Models: the same weights under every strategy, the knobs of a block, and clear refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_cases import for_each
from torch import Tensor, nn

from bnlab.errors import ConfigError, IncompatibleError
from bnlab.models.airbench import Airbench, Whitening
from bnlab.models.cnn import Cnn
from bnlab.models.mlp import Mlp
from bnlab.models.model import GAINS, ModelSpec, build, models, norm_layers
from bnlab.models.resnet import Residual, Resnet
from bnlab.norms.strategy import NormLayer, PerActivation, strategies
from bnlab.schema import parse

SPECS: list[ModelSpec] = [Mlp(widths=(16, 24)), Cnn(widths=(8, 16), depth=2), Resnet(depth=8, width=8)]
SPECS += [Airbench(widths=(32,), activation="relu")]
SHAPE = (3, 8, 8)


def make(spec: ModelSpec, norm: str = "batch", seed: int = 0, **p: Any) -> nn.Module:
    return build(spec, strategies[norm](**p), SHAPE, 10, seed)


def weights(model: nn.Module) -> list[Tensor]:
    return [m.weight.detach() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def kinds(model: nn.Module) -> list[str]:
    """The leaf modules in order, in one letter each: l(inear) c(onv) n(orm) a(ctivation) p(ool) d(ropout) f(latten)."""
    letters = {
        nn.Linear: "l",
        nn.Conv2d: "c",
        NormLayer: "n",
        nn.ReLU: "a",
        nn.SELU: "a",
        nn.MaxPool2d: "p",
        nn.AdaptiveAvgPool2d: "p",
        nn.Dropout: "d",
        nn.AlphaDropout: "D",
        nn.Flatten: "f",
    }
    leaves = [m for m in model.modules() if not list(m.children()) and type(m) is not nn.Sequential]
    return [next(letter for kind, letter in letters.items() if isinstance(m, kind)) for m in leaves]


def biases(model: nn.Module) -> list[bool]:
    return [m.bias is not None for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


@for_each("spec", SPECS, ids=lambda s: s.name)
def test_weights_depend_on_the_seed_alone(spec: ModelSpec) -> None:
    reference = weights(make(spec, "none"))
    for norm in strategies:
        if strategies[norm]().facts.needs_space and not spec.has_space:
            continue
        for bias in ("auto", "true", "false"):
            for more in ({}, {"placement": "both"}, {"norm_every": 2}, {"dropout": 0.5}, {"input_norm": "batch"}):
                changed = type(spec)(**{**vars(spec), "bias": bias, **more})
                if changed.placement != "pre" and strategies[norm]().activation(1):
                    continue
                model = make(changed, norm)
                for a, b in zip(reference, weights(model), strict=True):
                    assert torch.equal(a, b)
    assert not torch.equal(reference[0], weights(make(spec, "none", seed=1))[0])


@for_each("spec", SPECS, ids=lambda s: s.name)
def test_building_leaves_the_global_generator_alone(spec: ModelSpec) -> None:
    before = torch.get_rng_state()
    make(spec)
    assert torch.equal(before, torch.get_rng_state())


KNOBS: list[dict[str, Any]] = [
    {},
    {"placement": "post"},
    {"placement": "both"},
    {"placement": "last"},
    {"norm_every": 2},
    {"norm_every": 2, "norm_rest": "frozen"},
    {"norm_every": 2, "norm_rest": "refrozen"},
    {"bias": "true"},
    {"bias": "false"},
    {"activation": "elu"},
    {"activation": "selu", "dropout": 0.1},
    {"activation": "gelu"},
    {"activation": "sigmoid"},
    {"activation": "tanh"},
    *({"dropout": 0.5, "dropout_place": place} for place in ("after", "before", "classifier")),
    {"input_norm": "batch"},
    {"input_norm": "none"},
]


@for_each("knobs", KNOBS, ids=lambda k: "-".join(f"{n}={v}" for n, v in k.items()) or "plain")
@for_each("spec", SPECS, ids=lambda s: s.name)
@for_each("norm", list(strategies))
def test_every_knob_works_with_every_strategy_or_is_refused_by_name(
    norm: str, spec: ModelSpec, knobs: dict[str, Any]
) -> None:
    changed = type(spec)(**{**vars(spec), **knobs})
    strategy = strategies[norm]()
    own_activation = strategy.activation(8) is not None
    refused = strategy.facts.needs_space and not changed.norms_see_pixels
    refused |= own_activation and (changed.placement != "pre" or changed.activation != "relu")
    refused |= strategy.weight_transform is not None and changed.placement == "last"
    if refused:
        with pytest.raises(IncompatibleError, match=f"norm={norm}.*model"):
            make(changed, norm)
        return
    model = make(changed, norm)
    logits = model(torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (5, 10)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    names = [type(layer).__name__ for _, layer in norm_layers(model)]
    assert len(names) > 0
    if knobs.get("norm_rest"):
        frozen = type(strategies["frozen"]().layer(8)).__name__
        blocks = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][:-1]
        assert len(names) == len(blocks)
        assert all(name == frozen for name in names[::2])


def test_initial_biases_are_zero_and_weights_have_their_gain() -> None:
    for activation, gain in (("relu", 2**0.5), ("selu", 1.0), ("tanh", 5 / 3), ("sigmoid", 1.0), ("elu", 1.2452)):
        model = make(Mlp(widths=(512, 512), activation=activation), "none")
        first, second, last = weights(model)
        assert float(first.std()) * 192**0.5 == pytest.approx(gain, rel=0.02)
        assert float(second.std()) * 512**0.5 == pytest.approx(gain, rel=0.02)
        assert float(last.std()) * 512**0.5 == pytest.approx(1.0, rel=0.05)
        assert all((m.bias == 0).all() for m in model.modules() if isinstance(m, nn.Linear))


def test_the_gains_of_elu_and_gelu_are_those_of_a_standard_normal() -> None:
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
    for name, activation in (("elu", F.elu), ("gelu", F.gelu)):
        second_moment = torch.trapezoid(activation(z).square() * density, z)
        assert float(second_moment.rsqrt()) == pytest.approx(GAINS[name], abs=1e-4)


def test_placement_order() -> None:
    mlp = Mlp(widths=(8, 8), dropout=0.5)
    assert "".join(kinds(make(mlp))) == "f" + "lnad" * 2 + "l"
    assert "".join(kinds(make(Mlp(widths=(8, 8), placement="post")))) == "f" + "lan" * 2 + "l"
    assert "".join(kinds(make(Cnn(widths=(4, 4), depth=2, dropout=0.5)))) == ("cnacnap") * 2 + "fdl"
    assert "".join(kinds(make(Resnet(depth=8, width=4)))) == "cna" + "cnacna" * 3 + "pfl"
    assert "".join(kinds(make(Resnet(depth=8, width=4, placement="post")))) == "can" + "cancan" * 3 + "pfl"
    assert "".join(kinds(make(Mlp(widths=(8, 8), placement="both", dropout=0.5)))) == "f" + "lnand" * 2 + "l"
    assert "".join(kinds(make(Resnet(depth=8, width=4, placement="both")))) == "cnan" + "cnancnan" * 3 + "pfl"
    assert "".join(kinds(make(Mlp(widths=(8, 8), placement="last", dropout=0.5)))) == "f" + "lad" + "land" + "l"
    assert "".join(kinds(make(Cnn(widths=(4, 4), placement="last", dropout=0.5)))) == "cap" * 2 + "nfdl"
    assert "".join(kinds(make(Resnet(depth=8, width=4, placement="last")))) == "ca" + "caca" * 3 + "pfnl"


def normalized(z: Tensor) -> Tensor:
    """Batch normalization of (N, C) as it starts, in float64."""
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()


def test_both_and_last_compute_what_they_say() -> None:
    x = torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    first, second, last = (w.double() for w in weights(make(Mlp(widths=(8, 6)))))
    z = normalized((normalized(x.flatten(1) @ first.T)).relu())
    z = normalized(normalized(z @ second.T).relu())
    torch.testing.assert_close(make(Mlp(widths=(8, 6), placement="both")).double()(x), z @ last.T)
    z = normalized(((x.flatten(1) @ first.T).relu() @ second.T).relu())
    torch.testing.assert_close(make(Mlp(widths=(8, 6), placement="last")).double()(x), z @ last.T)


@for_each("spec", SPECS[1:], ids=lambda s: s.name)
@for_each("norm", ["batch", "ghost", "sync", "renorm", "streaming", "population"])
def test_statistics_of_each_activation_are_those_of_the_layer_as_vectors(spec: ModelSpec, norm: str) -> None:
    """Each norm layer of a network over images sees (N, C * H * W) and has a gamma for each."""
    model = make(spec, norm, per="activation")
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, outer in model.named_modules():
        if isinstance(outer, PerActivation):
            outer.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    x = torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))
    model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    layers = [layer for _, layer in norm_layers(model)]
    assert len(layers) == len(seen) == {"cnn": 4, "resnet": 7, "airbench": 2}[spec.name]
    for layer, (z, y) in zip(layers, seen.values(), strict=True):
        assert layer.weight is not None
        assert layer.weight.numel() == layer.channels == z[0].numel()
        assert y.shape == z.shape
        assert y.is_contiguous(memory_format=torch.channels_last)
        if norm == "batch":
            wide = z.double()
            var, mean = torch.var_mean(wide, 0, correction=0)
            torch.testing.assert_close(y.double(), (wide - mean) / (var + 1e-5).sqrt(), rtol=1e-4, atol=1e-4)
            running_mean = layer.get_buffer("running_mean").double().view(mean.shape)
            torch.testing.assert_close(running_mean, 0.1 * mean, rtol=1e-4, atol=1e-5)


def test_an_odd_image_has_its_pixels_counted() -> None:
    x = torch.rand(5, 1, 11, 13)
    for spec in (Resnet(depth=8, width=4), Cnn(widths=(4, 6)), Cnn(widths=(4, 6), placement="last")):
        assert build(spec, strategies["batch"](per="activation"), (1, 11, 13), 10, 0)(x).shape == (5, 10)


def test_activations_without_pixels_are_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"norm.per=activation: is per=channel.*model=mlp\nset norm.per"):
        make(Mlp(), per="activation")
    with pytest.raises(IncompatibleError, match=r"norm.stat_stride=2: leaves pixels out"):
        strategies["batch"](per="activation", stat_stride=2)
    with pytest.raises(ConfigError, match=r"norm.over=activation: must be one of sample, channel"):
        parse(strategies["layer"], {"over": "activation"}, "norm")


def test_placements_that_mean_nothing_are_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"model.norm_every=2: has no meaning with model.placement=last"):
        Mlp(placement="last", norm_every=2)
    with pytest.raises(IncompatibleError, match=r"model=resnet with model.placement=last see none"):
        make(Resnet(depth=8, placement="last"), "instance")
    with pytest.raises(IncompatibleError, match=r"transforms the weights.*follows none\n.*take norm=group"):
        make(Mlp(placement="last"), "weight_std")
    with pytest.raises(IncompatibleError, match=r"model.norm_rest=frozen: has no effect with model.norm_every=1"):
        Mlp(norm_rest="frozen")


def test_depth_repeats_the_one_width_of_an_mlp() -> None:
    deep, listed = make(Mlp(widths=(8,), depth=3)), make(Mlp(widths=(8, 8, 8)))
    assert "".join(kinds(deep)) == "f" + "lna" * 3 + "l"
    assert all(torch.equal(a, b) for a, b in zip(deep.parameters(), listed.parameters(), strict=True))
    with pytest.raises(ConfigError, match=r"names 2\nset model.widths=\[256\], or model.depth=null"):
        Mlp(depth=16)


def test_norm_every_normalizes_only_its_layers() -> None:
    model = make(Mlp(widths=(8, 8, 8, 8), norm_every=2))
    assert "".join(kinds(model)) == "f" + "la" + "lna" + "la" + "lna" + "l"
    assert biases(model) == [True, False, True, False, True]
    assert "".join(kinds(make(Resnet(depth=8, width=4, norm_every=2)))) == "ca" + "cnaca" + "cnaca" + "cnaca" + "pfl"
    assert list(norm_layers(make(Mlp(widths=(8,), norm_every=2)))) == []


def test_bias_is_dropped_only_where_it_has_no_effect() -> None:
    spec = Mlp(widths=(8, 8))
    assert biases(make(spec, "batch")) == [False, False, True]
    assert biases(make(spec, "layer")) == [True, True, True]
    assert biases(make(spec, "none")) == [True, True, True]
    assert biases(make(Mlp(widths=(8, 8), placement="post"), "batch")) == [True, True, True]
    assert biases(make(Mlp(widths=(8, 8), placement="both"), "batch")) == [False, False, True]
    assert biases(make(Mlp(widths=(8, 8), placement="last"), "batch")) == [True, True, True]
    assert biases(make(Mlp(widths=(8, 8), bias="true"), "batch")) == [True, True, True]
    assert biases(make(Mlp(widths=(8, 8), bias="false"), "none")) == [False, False, True]
    assert Mlp(bias=False).bias == "false"  # type: ignore[arg-type]


def test_a_dropped_bias_would_have_had_no_effect() -> None:
    x = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    for norm in ("batch", "instance"):
        without, kept = make(Cnn(bias="auto"), norm), make(Cnn(bias="true"), norm)
        with torch.no_grad():
            for module in kept.modules():
                if isinstance(module, nn.Conv2d) and module.bias is not None:
                    module.bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(without(x), kept(x), rtol=1e-4, atol=1e-4)


def test_input_norm_batch_standardizes_the_input() -> None:
    for spec in (Mlp(widths=(8,), input_norm="batch"), Cnn(widths=(4,), input_norm="batch")):
        name, first = next(norm_layers(make(spec, "none")))
        assert name == "0"
        assert first.weight is None
        x = torch.rand(32, *SHAPE) * 5 + 3
        assert first(x).mean((0, 2, 3)).abs().max() < 1e-5


def test_norm_rest_normalizes_the_other_layers_with_frozen_statistics() -> None:
    spec = Mlp(widths=(8, 8, 8), norm_every=2, norm_rest="frozen")
    model = make(spec, "batch", eps=1e-3)
    layers = [layer for _, layer in norm_layers(model)]
    assert [layer.eps for layer in layers] == [1e-3] * 3
    assert biases(model) == [True, False, True, True]
    assert [s.name for s in spec.strategies(strategies["batch"]())] == ["batch", "frozen"]
    assert [s.name for s in Mlp(input_norm="batch").strategies(strategies["layer"]())] == ["layer", "batch"]


def test_selu_has_lecun_weights_and_alpha_dropout() -> None:
    assert "".join(kinds(make(Mlp(widths=(8,), activation="selu", dropout=0.1)))) == "flnaDl"


def test_resnet_shortcut_has_no_parameters_and_pads_with_zeros() -> None:
    model = make(Resnet(depth=8, width=4), "none")
    assert len(weights(model)) == 8
    block = next(m for m in model.modules() if getattr(m, "stride", None) == 2 and hasattr(m, "branch"))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    x = torch.rand(2, 4, 8, 8)
    y = block(x)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert y.shape == (2, 8, 4, 4)
    assert (y[:, 4:] == 0).all()


def test_dropout_has_its_place() -> None:
    def order(spec: ModelSpec) -> str:
        return "".join(kinds(make(spec)))

    def places(kind: Any, **keys: Any) -> list[str]:
        return [order(kind(dropout=0.5, dropout_place=p, **keys)) for p in ("after", "before", "classifier")]

    assert places(Mlp, widths=(8, 8)) == ["f" + "lnad" * 2 + "l", "f" + "ldna" * 2 + "l", "f" + "lna" * 2 + "dl"]
    assert places(Cnn, widths=(4, 4)) == ["cnadp" * 2 + "fl", "cdnap" * 2 + "fl", "cnap" * 2 + "fdl"]
    assert places(Cnn, widths=(4,), placement="post") == ["candpfl", "cdanpfl", "canpfdl"]
    blocks = ["cnad" + "cnadcna" * 3, "cdna" + "cdnacdna" * 3, "cna" + "cnacna" * 3]  # of a sum nothing is dropped
    assert places(Resnet, depth=8, width=4) == [blocks[0] + "pfl", blocks[1] + "pfl", blocks[2] + "pfdl"]
    assert order(Mlp(widths=(8,), dropout=0.5)) == "flnadl"
    with pytest.raises(ConfigError, match=r"model.dropout_place=before: has no effect without dropout\nset model.dro"):
        Cnn(dropout_place="before")


def test_a_bias_in_front_of_dropout_and_norm_is_kept() -> None:
    """What is dropped has lost its bias: with another one the norm sees something else."""
    spec = Mlp(widths=(64,), dropout=0.5, dropout_place="before")
    assert biases(make(spec, "batch")) == [True, True]
    x, model = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(0)), make(spec, "batch")
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear))
    outputs = []
    for bias in (0.0, 3.0):
        torch.manual_seed(0)
        with torch.no_grad():
            layer.bias.fill_(bias)
            outputs.append(model(x))
    assert not torch.allclose(*outputs, atol=0.1)


def residuals(**keys: Any) -> tuple[nn.Module, list[Residual]]:
    model = make(Resnet(depth=14, width=4, **keys), "batch").eval()
    return model, [m for m in model.modules() if isinstance(m, Residual)]


def test_a_resnet_with_skip_init_starts_as_its_shortcuts() -> None:
    model, blocks = residuals(branch="skip_init")
    x = torch.rand(5, 4, 8, 8)
    assert torch.equal(blocks[0](x), x)  # behind a relu, which leaves it
    factors = [block.branch[-1].factor for block in blocks]
    assert [factor.tolist() for factor in factors] == [[0.0]] * 6
    model.train()(torch.rand(5, *SHAPE)).square().sum().backward()
    assert all(factor.grad is not None and float(factor.grad.abs()) > 0 for factor in factors)
    weight = blocks[0].branch[0].weight
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) == 0  # which its factor lets through after the first step only
    with torch.no_grad():
        factors[0].fill_(0.5)
    model.eval()
    assert torch.allclose(blocks[0](x), F.relu(0.5 * blocks[0].branch[:-1](x) + x))


def test_a_scaled_branch_is_divided_by_the_root_of_the_number_of_blocks() -> None:
    plain, scaled = residuals(), residuals(branch="scaled")
    x = torch.rand(5, 4, 8, 8)
    assert torch.allclose(scaled[1][0](x), F.relu(plain[1][0].branch(x) / 6**0.5 + x), atol=1e-6)
    assert [name for name, _ in scaled[0].named_parameters()] == [name for name, _ in plain[0].named_parameters()]
    for a, b in zip(weights(plain[0]), weights(scaled[0]), strict=True):
        assert torch.equal(a, b)


def test_without_shortcuts_a_resnet_is_its_branches() -> None:
    model, blocks = residuals(shortcut="none")
    x = images = torch.rand(5, *SHAPE)
    for module in model.children():
        x = F.relu(module.branch(x)) if module in blocks else module(x)
    assert torch.equal(x, model(images))
    assert not torch.allclose(x, residuals()[0](images))
    for branch in ("skip_init", "scaled"):
        with pytest.raises(ConfigError, match=rf"model.branch={branch}: makes a branch small .* there is none\nset mo"):
            Resnet(shortcut="none", branch=branch)


def test_layouts_agree() -> None:
    x = torch.randn(8, *SHAPE)
    for norm in strategies:
        plain, last = make(Cnn(), norm), make(Cnn(), norm).to(memory_format=torch.channels_last)
        torch.testing.assert_close(plain(x), last(x.to(memory_format=torch.channels_last)), rtol=1e-4, atol=1e-4)


def test_instance_in_an_mlp_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"norm=instance.*model=mlp"):
        make(Mlp(), "instance")


def test_a_small_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least 16 x 16 pixels\nthe images here are 8 x 8\nuse at most 3 stages"):
        make(Cnn(widths=(4, 4, 4, 4)))
    make(Cnn(widths=(4, 4, 4)))


def test_resnet_depth_must_be_6n_plus_2() -> None:
    with pytest.raises(ConfigError, match=r"model.depth=18: must be 6n \+ 2.*\nuse 14 or 20"):
        make(Resnet(depth=18))


def test_a_model_carries_the_name_that_it_is_found_by() -> None:
    assert {"cnn", "mlp", "resnet"} <= set(models)
    assert all(models[name].name == name for name in models)


def test_airbench_is_its_formula_in_plain_torch() -> None:
    """Whitened patches, two groups, the last pool over all that is left, a ninth of the logits."""
    model = build(Airbench(widths=(6, 12)), strategies["batch"](affine="beta"), (3, 20, 26), 10, 0).double()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(5, 3, 20, 26, dtype=torch.float64)
    whitening = next(m for m in model if isinstance(m, Whitening))  # type: ignore[attr-defined]
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    betas = [layer.beta for _, layer in norm_layers(model)]
    y = F.gelu(F.conv2d(x, whitening.weight, whitening.bias))
    for number, (conv, beta) in enumerate(zip(convs, betas, strict=True)):
        assert beta is not None
        y = F.conv2d(y, conv.weight, padding=1)
        y = F.max_pool2d(y, 2) if number % 2 == 0 else y
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, correction=0)
        y = F.gelu((y - mean) / (var + 1e-5).sqrt() + beta.view(1, -1, 1, 1))
    logits = y.amax((2, 3)) @ weights(model)[-1].T / 9
    assert torch.allclose(model(x), logits)


def test_airbench_begins_with_white_patches_and_identities() -> None:
    colours, mixed = torch.randn(400, 3, 9, 12), torch.tensor([[1.0, 0.5, 0.2], [0.0, 1.0, 0.9], [0.3, 0.0, 0.1]])
    images = F.avg_pool2d(torch.einsum("ij,njhw->nihw", mixed, colours), 2, 1)  # neighbours and colours go together
    for spec in (Airbench(widths=(30,)), Airbench(widths=(30,), input_norm="batch")):
        model = build(spec, strategies["none"](), (3, 8, 11), 10, 0)
        before = [parameter.clone() for parameter in model.parameters()]
        spec.begin(model, lambda count: images[:count])
        assert all(map(torch.equal, before, model.parameters()))  # the filters are none
        seen = images
        if spec.input_norm == "batch":
            seen = F.batch_norm(images, None, None, training=True)
        whitening = next(m for m in model.modules() if isinstance(m, Whitening))
        patches = whitening(seen).transpose(0, 1).flatten(1)
        half = len(patches) // 2
        assert torch.equal(patches[:half], -patches[half:])
        moments = patches[:half] @ patches[:half].T / patches.shape[1]
        least = moments.diagonal().min()
        assert torch.allclose(moments, moments.diagonal().diag(), atol=1e-3)
        assert 0.3 < least <= moments.diagonal().max() <= 1.001  # below 1 by eps where there is little to whiten
        first, second = weights(model)[:2]
        x = torch.randn(2, 24, 5, 5)
        assert torch.allclose(F.conv2d(x, first, padding=1)[:, :24], x)
        assert not torch.allclose(first[24], first[25])
        assert torch.equal(second, nn.init.dirac_(torch.empty(30, 30, 3, 3)))


def test_airbench_refuses_images_that_are_too_small() -> None:
    with pytest.raises(ConfigError, match=r"(?s)model.widths=\[64, 256, 256\]: 3 groups .*8 x 8"):
        build(Airbench(), strategies["batch"](), (1, 8, 8), 10, 0)
    build(Airbench(widths=(8, 8, 8)), strategies["instance"](), (1, 17, 17), 10, 0)
