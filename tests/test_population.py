"""Statistics of the training set: equal to one batch of the whole set, value and gradient, and nothing else moves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_cases import for_each
from helpers_training import train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.errors import ConfigError
from bnlab.experiment.trained_model import of_run
from bnlab.measure import refresh as refreshing
from bnlab.measure.layer_statistics import Statistics, adopt, running_layers
from bnlab.measure.moments import Moments, chunk_moments
from bnlab.measure.population_statistics import Takers, mixed_with_batch, plan, precise
from bnlab.measure.population_statistics import population as planned
from bnlab.measure.refresh import Refresh, refreshed
from bnlab.models.model import ModelSpec, build, models, norm_layers
from bnlab.norms.running import RunningLayer
from bnlab.norms.strategy import strategies

SHAPE = (2, 8, 8)
SPECS: dict[str, ModelSpec] = {
    "mlp": models["mlp"](widths=(7, 6, 5), bias="true"),
    "cnn": models["cnn"](widths=(3, 4), depth=2),
    "cnn-post": models["cnn"](widths=(3, 4), placement="post", activation="tanh"),
    "cnn-input": models["cnn"](widths=(3, 4), input_norm="batch"),
    "resnet": models["resnet"](depth=8, width=3),
}
CHUNKS = [None, 1, 3, 10]  # None: as the engine chooses, here all at once


class Images(Batches):
    """Random samples in float64, and their labels."""

    def __init__(self, count: int = 10, channels_last: bool = False, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (count, *SHAPE), generator=draw, dtype=torch.uint8)
        labels = torch.randint(0, 4, (count,), generator=draw)
        super().__init__(Split(pixels, labels), batch_size=4, channels_last=channels_last)
        self._images = self._images.double() + 0.1 * torch.randn(self._images.shape, generator=draw).double()

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        return next(self.sequential(len(self)))


def network(spec: str, norm: str, **p: Any) -> nn.Module:
    """A model in float64 whose gamma and beta are not 1 and 0."""
    model = build(SPECS[spec], strategies[norm](**p), SHAPE, 4, 0).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in norm_layers(model):
            for parameter in layer.parameters():
                parameter += 0.5 * torch.randn(parameter.shape, generator=draw).double()
    return model


def twin(model: nn.Module, spec: str) -> nn.Module:
    """The same weights with batch normalization."""
    other = network(spec, "batch")
    pairs = zip(other.named_parameters(), model.named_parameters(), strict=True)
    with torch.no_grad():
        for (name, mine), (theirs, parameter) in pairs:
            assert name == theirs
            mine.copy_(parameter)
    return other


def takers_of(model: nn.Module) -> dict[nn.Module, int | None]:
    return dict.fromkeys(running_layers(model))


def population(model: nn.Module, takers: Takers, images: Batches, chunk: int | None = None) -> Statistics:
    return planned(model, plan(model, takers, images, chunk))


def refresher(model: nn.Module, images: Batches) -> Refresh:
    precision: Callable[[], AbstractContextManager[object]] = nullcontext
    return Refresh(model, images, precision, torch.device("cpu"))


def snapshot(model: nn.Module) -> Any:
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [layer.num_unnormalizable for _, layer in norm_layers(model)],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        torch.get_rng_state(),
        [len(module._forward_pre_hooks) for module in model.modules()],
    )


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


# ---------------------------------------------------------------- moments


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    space=st.sampled_from([(), (1, 1), (3, 2)]),
    offset=st.sampled_from([0.0, 1e4, -1e6]),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_chunks_merge_to_the_moments_of_the_whole(
    sizes: list[int], space: tuple[int, ...], offset: float, channels_last: bool, seed: int
) -> None:
    """In float32, against float64 over the very same values: an offset of 1e6 costs no digit of the variance."""
    x = torch.randn(sum(sizes), 3, *space, generator=torch.Generator().manual_seed(seed)) + offset
    x[:, 2] = offset  # a constant channel
    if space and channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    found = Moments()
    for part in torch.split(x, sizes):
        found.add(part)
    values = x.double().transpose(0, 1).flatten(1)
    mean, var = found.result()
    assert found.count == values.shape[1]
    by_hand = [sum(row) / len(row) for row in values.tolist()]
    torch.testing.assert_close(mean, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-12, atol=1e-6)
    centred = values - values.mean(1, keepdim=True)
    torch.testing.assert_close(var, centred.square().mean(1), rtol=1e-5, atol=1e-12)
    assert var[2] == 0


def test_moments_of_many_values_and_of_narrow_types() -> None:
    x = (torch.randn(64, 2, 28, 28, generator=torch.Generator().manual_seed(0)) + 1e4).to(
        memory_format=torch.channels_last
    )
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    found = chunk_moments(x)
    torch.testing.assert_close(found[0], mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], var, rtol=1e-5, atol=0)
    narrow = torch.randn(50, 3).bfloat16()
    torch.testing.assert_close(chunk_moments(narrow)[0], narrow.double().mean(0), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="no values"):
        Moments().result()


# ---------------------------------------------------------------- statistics


@for_each("chunk", CHUNKS)
@for_each("spec", SPECS)
def test_population_is_one_forward_pass_with_the_batch_the_whole_set(spec: str, chunk: int | None) -> None:
    model, images = network(spec, "batch"), Images(channels_last=spec == "cnn")
    model.train()
    inputs: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, x: inputs.update({m: x[0]})) for m in running_layers(model)]
    whole = copy.deepcopy(model)(images.whole[0])  # deepcopy shares the hooks, so `inputs` has its layers
    for hook in hooks:
        hook.remove()
    before = snapshot(model)
    found = population(model, takers_of(model), images, chunk)
    assert_same(before, snapshot(model))
    assert len(found) == len(inputs)
    for (mean, var), x in zip(found.values(), inputs.values(), strict=True):
        values = x.transpose(0, 1).flatten(1)
        torch.testing.assert_close(mean, values.mean(1), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(var, values.var(1, correction=0), rtol=1e-10, atol=1e-12)
    for layer, statistics in found.items():
        adopt(layer, *statistics)
    torch.testing.assert_close(model.eval()(images.whole[0]), whole, rtol=1e-9, atol=1e-10)


@for_each("spec", SPECS)
def test_precise_with_one_full_batch_is_population(spec: str) -> None:
    model, images = network(spec, "batch"), Images()
    before = snapshot(model)
    once = precise(model, images.sequential(len(images)))
    assert_same(before, snapshot(model))
    exact = population(model, takers_of(model), images)
    assert list(once) == running_layers(model)
    for layer, statistics in exact.items():
        torch.testing.assert_close(once[layer], statistics, rtol=1e-9, atol=1e-12)


def test_precise_pools_batches_behind_layers_on_batch_statistics() -> None:
    model, images = network("mlp", "batch"), Images()
    flatten, linear, first, act, second = model[:5]  # type: ignore[index]
    layers = running_layers(model)
    found = precise(model, images.sequential(4))  # batches of 4, 4 and 2
    inputs = [linear(flatten(x)) for x, _ in images.sequential(4)]
    behind = [second(act(F.batch_norm(x, None, None, first.weight, first.bias, True, 0.0, 1e-5))) for x in inputs]
    for layer, parts in zip(layers, (inputs, behind), strict=False):
        pooled = torch.cat(parts)
        torch.testing.assert_close(found[layer][0], pooled.mean(0))
        torch.testing.assert_close(found[layer][1], pooled.var(0, correction=0))
    exact = population(model, takers_of(model), images)
    torch.testing.assert_close(exact[layers[0]], found[layers[0]])
    assert not torch.allclose(exact[layers[1]][0], found[layers[1]][0], rtol=1e-3)


class Backwards(nn.Module):
    """Registers its layers in the other order than it runs them, and one that it never runs."""

    def __init__(self) -> None:
        super().__init__()
        batch = strategies["batch"]()
        self.unused, self.last, self.first = (batch.layer(2).double() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).exp())  # type: ignore[no-any-return]


@for_each("chunk", CHUNKS)
def test_the_order_is_that_of_execution(chunk: int | None) -> None:
    model, images = Backwards(), Images()
    found = population(model, takers_of(model), images, chunk)
    assert list(found) == [model.first, model.last]
    x = images.whole[0].transpose(0, 1).flatten(1)
    hat = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found[model.last][0], hat.exp().mean(1))
    torch.testing.assert_close(found[model.last][1], hat.exp().var(1, correction=0))


@for_each("chunk", CHUNKS)
@for_each("samples", [2, 6, 10, 99])
def test_samples_are_the_first_of_the_training_set(samples: int, chunk: int | None) -> None:
    """Each layer has its own number: the first of all images, the second of the first `samples`."""
    model, images = network("mlp", "batch"), Images()
    first, second = running_layers(model)[:2]
    found = population(model, {second: samples, first: None}, images, chunk)
    assert list(found) == [first, second]
    flatten, linear, _, act, after = model[:5]  # type: ignore[index]
    x = linear(flatten(images.whole[0]))
    torch.testing.assert_close(found[first][0], x.mean(0))
    x = after(act(F.batch_norm(x, *(s.clone() for s in found[first]), first.weight, first.bias, False, 0.0, 1e-5)))
    torch.testing.assert_close(found[second][1], x[:samples].var(0, correction=0))


@for_each("chunk", [None, 3])
@for_each("norm", ["batch", "ghost", "population", "layer"])
def test_an_error_on_the_way_leaves_the_model_as_it_was(norm: str, chunk: int | None) -> None:
    model = build(models["cnn"](widths=(4, 4), dropout=0.5), strategies[norm](), SHAPE, 4, 0).double().train()
    images, layers = Images(), [layer for _, layer in norm_layers(model)]
    model(images.whole[0]).sum().backward()
    model[0].eval()  # type: ignore[index, operator]
    before = snapshot(model)

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield images.whole
        raise KeyboardInterrupt

    hook = layers[1].register_forward_pre_hook(broken)
    if norm != "layer":
        with pytest.raises(KeyboardInterrupt):
            population(model, takers_of(model), images, chunk)
    hook.remove()
    with pytest.raises(KeyboardInterrupt):
        precise(model, batches())
    hook = layers[1].register_forward_hook(broken)
    with pytest.raises(KeyboardInterrupt), mixed_with_batch(model.eval(), 3):
        model(images.whole[0])
    hook.remove()
    model.train()
    model[0].eval()  # type: ignore[index, operator]
    assert_same(before, snapshot(model))


# ---------------------------------------------------------------- the strategies


def test_training_does_not_move_them() -> None:
    for name in ("population", "frozen"):
        layer = strategies[name]().layer(3).double().train()
        assert isinstance(layer, RunningLayer)
        adopt(layer, torch.tensor([1.0, -2.0, 3.0]), torch.tensor([4.0, 0.25, 0.0]))
        before = {key: value.clone() for key, value in layer.state_dict().items()}
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 3, 4, 4).double().contiguous(memory_format=layout)
            by_hand = (x - torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1)) / (
                torch.tensor([4.0, 0.25, 0.0]).double().view(3, 1, 1) + 1e-5
            ).sqrt()
            torch.testing.assert_close(layer.train()(x), by_hand)
            torch.testing.assert_close(layer.eval()(x), by_hand)
            assert layer(x).stride() == x.stride()
        assert layer(torch.randn(1, 3).double()).isfinite().all()
        narrow = strategies[name]().layer(3)(torch.randn(5, 3).bfloat16())
        assert narrow.dtype == torch.bfloat16
        assert_same(before, {key: value.clone() for key, value in layer.state_dict().items()})
        with pytest.raises(ValueError, match="empty"):
            layer(torch.empty(0, 3).double())


def test_a_gradient_through_stale_statistics_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"norm\.every=2: .*norm\.through=true"):
        strategies["population"](every=2, through=True)


@pytest.mark.parametrize("eps_outside", [False, True])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("spec", SPECS)
def test_with_the_training_set_the_batch_population_is_batch(
    spec: str, chunk: int | None, eps_outside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and every gradient, for three steps; the statistics of a whole set are the gradient's too."""
    kinds = {"eps_outside": eps_outside}
    model, images = network(spec, "population", through=True, **kinds), Images(channels_last=spec == "cnn")
    other = network(spec, "batch", **kinds)
    other.load_state_dict(model.state_dict())
    monkeypatch.setattr(refreshing, "plan", lambda *a: plan(*a, chunk))
    x, labels = images.whole
    source = refresher(model, images)
    source.begin()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other)]
    for step in range(3):
        source.before_step(step)
        one = F.cross_entropy(model(x), labels)
        one.backward()
        source.after_backward()
        two = F.cross_entropy(other(x), labels)
        two.backward()
        torch.testing.assert_close(one, two, rtol=1e-9, atol=0)
        for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(
                mine.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
            )
        assert all(layer.leaves is None for layer in running_layers(model))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert len(source.flush()) == 2  # begin() has served the first


@pytest.mark.parametrize("chunk", [None, 4])
def test_the_gradient_through_a_larger_set_is_that_of_the_written_out_function(
    chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is 3 of other samples, the statistics those of the first 7 of 10."""
    model, images = network("cnn", "population", through=True, samples=7), Images()
    monkeypatch.setattr(refreshing, "plan", lambda *a: plan(*a, chunk))
    x, labels = (part[:3] for part in Images(seed=5).whole)
    source = refresher(model, images)
    source.begin()
    source.before_step(0)
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    source.after_backward()
    found = [p.grad for p in model.parameters()]

    both = torch.cat([images.whole[0][:7], x])
    for module in model:  # type: ignore[attr-defined]
        if isinstance(module, RunningLayer):
            values = both[:7].transpose(0, 1).flatten(1)
            scale = module.weight / (values.var(1, correction=0) + 1e-5).sqrt()
            shape = (1, -1, 1, 1)
            both = (both - values.mean(1).view(shape)) * scale.view(shape) + module.bias.view(shape)
        else:
            both = module(both)
    by_hand = F.cross_entropy(both[7:], labels)
    torch.testing.assert_close(loss, by_hand)
    for mine, theirs in zip(found, torch.autograd.grad(by_hand, list(model.parameters())), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


def test_refreshes_come_at_their_steps() -> None:
    """every=3: the statistics before steps 0-2 are those of the initial weights, before 3-5 those of then."""
    model, images = network("mlp", "population", every=3), Images()
    source = refresher(model, images)
    assert Refresh.needed_by(model)
    source.begin()
    seen, exact = [], []
    for step in range(7):
        with torch.no_grad():
            model[1].weight += 0.1 * (step > 0)  # type: ignore[index]
        source.before_step(step)
        seen.append(model[2].running_mean.clone())  # type: ignore[index]
        exact.append(model[1](model[0](images.whole[0])).mean(0).detach())  # type: ignore[index]
    for step in range(7):
        torch.testing.assert_close(seen[step], exact[step // 3 * 3])
    assert not torch.allclose(exact[2], exact[3])
    assert len(source.flush()) == 2
    assert source.flush() == []


def test_frozen_never_changes_beside_layers_of_another_strategy() -> None:
    """norm_every=2 with norm_rest=frozen: frozen, batch, frozen. All are taken, only the frozen keep theirs."""
    spec = models["mlp"](widths=(7, 6, 5), norm_every=2, norm_rest="frozen")
    model, images = build(spec, strategies["batch"](), SHAPE, 4, 0).double(), Images()
    layers = running_layers(model)
    assert [layer.refresh_every for layer in layers] == [0, None, 0]
    source = refresher(model, images)
    source.begin()
    assert layers[1].running_mean.eq(0).all()
    assert layers[1].running_var.eq(1).all()
    values = images.whole[0]
    for module in model[:8]:  # type: ignore[index]
        if module is layers[1]:
            values = F.batch_norm(values, None, None, training=True)
        elif module is layers[2]:
            break
        else:
            values = module(values)
    torch.testing.assert_close(layers[2].running_mean, values.mean(0))
    kept = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in (layers[0], layers[2])]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        source.before_step(step)
        F.cross_entropy(model(images.whole[0]), images.whole[1]).backward()
        source.after_backward()
        optimizer.step()
    assert_same(kept, [(layer.running_mean, layer.running_var) for layer in (layers[0], layers[2])])
    assert not layers[1].running_mean.eq(0).any()
    assert source.flush() == []
    assert refreshed(model, images) == {}


def test_refrozen_is_frozen_in_training_and_taken_again_for_evaluation() -> None:
    spec = models["mlp"](widths=(7, 6, 5), norm_every=2, norm_rest="refrozen")
    model, images = build(spec, strategies["batch"](), SHAPE, 4, 0).double(), Images()
    first, batch, last = running_layers(model)
    source = refresher(model, images)
    source.begin()
    kept = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in (first, last)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        source.before_step(step)
        F.cross_entropy(model(images.whole[0]), images.whole[1]).backward()
        optimizer.step()
    assert_same(kept, [(layer.running_mean, layer.running_var) for layer in (first, last)])
    source.end()
    model.eval()
    values = images.whole[0].flatten(1)
    for module in model:  # type: ignore[attr-defined]
        if module in (first, last):
            torch.testing.assert_close(module.running_mean, values.mean(0))
            torch.testing.assert_close(module.running_var, values.var(0, correction=0))
        values = module(values)
    assert set(refreshed(model, images)) == {first, last}
    assert not torch.allclose(first.running_mean, kept[0][0])
    assert int(batch.num_batches_tracked) == 4


def test_population_beside_frozen_and_input_batch_norm() -> None:
    spec = models["mlp"](widths=(7, 6), norm_every=2, norm_rest="frozen", input_norm="batch")
    model, images = build(spec, strategies["population"](), SHAPE, 4, 0).double(), Images()
    first, frozen, last = running_layers(model)
    source = refresher(model, images)
    source.begin()
    kept = frozen.running_mean.clone()
    with torch.no_grad():
        model[2].weight *= 1.5  # type: ignore[index]
    source.before_step(1)
    assert torch.equal(frozen.running_mean, kept)
    assert first.running_mean.eq(0).all()
    x = model[1](F.batch_norm(images.whole[0], None, None, training=True))  # type: ignore[index]
    x = model[5](model[4](frozen(model[2](x))))  # type: ignore[index]
    torch.testing.assert_close(last.running_mean, x.mean(0))


def test_the_layers_of_other_strategies_need_no_refresh() -> None:
    for name in ("none", "batch", "layer"):
        assert not Refresh.needed_by(network("cnn", name))


# ---------------------------------------------------------------- runs

SHORT = ("trainer.steps=14", "trainer.device=cpu", "trainer.threads=1", "model.widths=[4,8]", "optim.lr=0.02")


def test_a_run_keeps_the_statistics_that_its_last_evaluation_had(tmp_path: Path) -> None:
    train([*SHORT, "norm=batch", "model.norm_every=2", "model.norm_rest=refrozen"], tmp_path / "run")
    curve = json.loads((tmp_path / "run" / "summary.json").read_text())["curve"]
    trained = of_run(tmp_path / "run")
    images, labels = next(trained.test.sequential(len(trained.test)))
    loss = F.cross_entropy(trained.model(images), labels)
    assert loss.item() == pytest.approx(curve["test.loss"][-1], rel=1e-5)
    assert curve["test.loss_gap"][-1] != 0  # training has those of the first weights


@pytest.mark.parametrize(
    ("norm", "more", "refreshed_in_steps"),
    [
        ("population", (), True),
        ("population", ("norm.every=5", "norm.samples=100", "model.norm_rest=frozen", "model.norm_every=2"), True),
        ("population", ("norm.through=true", "norm.samples=200", "model.input_norm=batch", "data.shift=1"), True),
        ("frozen", ("model.dropout=0.2",), False),
    ],
)
def test_runs(tmp_path: Path, norm: str, more: tuple[str, ...], refreshed_in_steps: bool) -> None:
    train([*SHORT, f"norm={norm}", *more], tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["state"] == "done"
    assert (summary["refresh_ms"] is not None) == refreshed_in_steps
    assert summary["facts"]["reads_training_set"] is True
    assert summary["curve"]["train.loss"][-1] < summary["curve"]["train.loss"][0]
    if not {"norm.every=5", "model.input_norm=batch"} & set(
        more
    ):  # training has the statistics of the weights that evaluation has
        assert set(summary["curve"]["test.acc_gap"]) == {0.0}
