"""Whatever is measured on a model leaves it, and the random states, as they were to the last bit; also half-way."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_cases import for_each
from helpers_probe import Doubles, assert_unchanged, few_draws, picture, probe_of, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.ops import FrozenBatchNorm2d

from bnlab.data.augment import Augment
from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.data.severities import STATS
from bnlab.errors import IncompatibleError
from bnlab.measure import decomposition
from bnlab.measure.by_layer import layer_gaps
from bnlab.measure.decomposition import decompose, levels, stages
from bnlab.measure.layer_statistics import running_layers
from bnlab.measure.modes import evaluating, learners, preserved, seeded, training_statistics
from bnlab.measure.population_statistics import adopted, mixed_with_batch, plan, population, precise
from bnlab.measure.probe_batches import Probe
from bnlab.measure.probe_model import probe
from bnlab.measure.recalibration import recalibration
from bnlab.measure.refresh import refreshed
from bnlab.measure.robustness import robustness
from bnlab.models.model import ModelSpec, build, models, norm_layers
from bnlab.norms.strategy import strategies

SHAPE = (2, 4, 4)
SPECS: dict[str, ModelSpec] = {
    "cnn": models["cnn"](widths=(8, 8), dropout=0.3),
    "mlp": models["mlp"](widths=(8, 8), dropout=0.3),
}
FITTING = [
    (norm, spec)
    for norm in strategies
    for spec in SPECS
    if SPECS[spec].has_space or not strategies[norm]().facts.needs_space
]
MEASURE = str(Path(decomposition.__file__).parent)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    few_draws(monkeypatch)


@dataclass(frozen=True)
class Given:
    """What a model is measured on."""

    train: Probe
    test: Probe
    training_set: Batches
    batch: Tensor


def given_samples() -> Given:
    images, labels = samples(14, SHAPE)
    training_set = Doubles(images[:10], labels[:10])
    return Given(
        probe_of(images[:8], labels[:8], 4, Augment(flip=True)),
        probe_of(images[6:], labels[6:], 4),
        training_set,
        images[:4],
    )


GIVEN = given_samples()


def worked(model: nn.Module) -> nn.Module:
    """The model after three training steps, with gradients, in a mixed mode, and with hooks of its user."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for images, labels in GIVEN.training_set.sequential(4):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    for module in list(model.modules())[1::2]:
        module.training = False
    first = next(model.children())
    first.register_forward_hook(lambda module, inputs, output: None)
    first.register_forward_pre_hook(lambda module, inputs: None)
    for layer in running_layers(model):
        layer.register_forward_pre_hook(lambda module, inputs: None)
    return model


def ours(norm: str, spec: str) -> nn.Module:
    strategy = strategies[norm]()
    model = build(SPECS[spec], strategy, SHAPE, 3, 0).double()
    for _, layer in norm_layers(model):
        layer.begin(10)
    return worked(model)


# ---------------------------------------------------------------- models that are not ours


class InParameters(nn.Module):
    """A batch norm of a library that keeps its running statistics in parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.running_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(channels), requires_grad=False)
        self.momentum = 0.2

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training, momentum=self.momentum)


class Restless(nn.Module):
    """Draws from every generator in training, and counts how often in a buffer that it replaces each time."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count = self.count + 1
            x = x + 0.1 * (random.random() + np.random.rand() + torch.rand(()).item())
        return x


class Frozen(nn.Sequential):
    """Keeps its second module in evaluation while the others train, as fine-tuning often does."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self[1].eval()
        return self


def head(*modules: nn.Module, cls: type[nn.Sequential] = nn.Sequential) -> nn.Module:
    torch.manual_seed(0)
    tail = (nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * 16, 3))
    return worked(cls(nn.Conv2d(2, 4, 3, padding=1), *modules, *tail).double())


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: head(nn.BatchNorm2d(4)),
    "BatchNorm2d cumulative": lambda: head(nn.BatchNorm2d(4, momentum=None)),
    "BatchNorm2d without statistics": lambda: head(nn.BatchNorm2d(4, track_running_stats=False)),
    "BatchNorm1d": lambda: worked(
        nn.Sequential(
            nn.Flatten(), nn.Linear(32, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)
        ).double()
    ),
    "InstanceNorm2d": lambda: head(nn.InstanceNorm2d(4, track_running_stats=True, affine=True)),
    "GroupNorm": lambda: head(nn.GroupNorm(2, 4)),
    "LayerNorm": lambda: head(nn.LayerNorm([4, 4, 4])),
    "FrozenBatchNorm2d": lambda: head(FrozenBatchNorm2d(4), nn.BatchNorm2d(4)),
    "kept in parameters": lambda: head(InParameters(4), nn.BatchNorm2d(4)),
    "restless": lambda: head(Restless(), nn.BatchNorm2d(4)),
    "spectral norm": lambda: head(spectral_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)),
    "frozen while training": lambda: head(nn.BatchNorm2d(4), nn.BatchNorm2d(4), cls=Frozen),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"{norm}-{spec}": lambda norm=norm, spec=spec: ours(norm, spec) for norm, spec in FITTING},  # type: ignore[misc]
    **OTHERS,
}


# ---------------------------------------------------------------- what is measured


def in_full(model: nn.Module) -> None:
    found = probe(model, [GIVEN.train, GIVEN.test], GIVEN.training_set, 6)
    assert len(found.gaps) == len(found.decompositions) == 2


def in_stages(model: nn.Module) -> None:
    how = plan(model, dict.fromkeys(learners(model)), GIVEN.training_set)
    at = levels(model, how, GIVEN.batch, refreshed(model, GIVEN.training_set))
    found = stages(model, GIVEN.train, at)
    assert len(decompose(model, GIVEN.train, found, at).terms) == len(decomposition.NAMES)
    layer_gaps(model, at.population or {})


def by_population(model: nn.Module) -> None:
    for chunk in (None, 3):
        population(model, plan(model, dict.fromkeys(running_layers(model)), GIVEN.training_set, chunk))


def by_precise(model: nn.Module) -> None:
    precise(model, GIVEN.training_set.sequential(5))


def mixed(model: nn.Module) -> None:
    for prior in (0.0, 3.0):
        with evaluating(model), mixed_with_batch(model, prior):
            model(GIVEN.batch)
            model(GIVEN.batch[:1])


def with_others(model: nn.Module) -> None:
    found = {layer: (layer.running_mean + 1, layer.running_var * 2) for layer in running_layers(model)}
    with evaluating(model), adopted(model, found):
        model(GIVEN.batch)


def as_in_training(model: nn.Module) -> None:
    with training_statistics(model) as start_again:
        model(GIVEN.batch)
        start_again()
        model(GIVEN.batch)


def recalibrating(model: nn.Module) -> None:
    for stats in ("population", "precise"):
        with suppress(IncompatibleError):  # where there is nothing to recalibrate
            splits = {"train": GIVEN.train.plain, "test": GIVEN.test.plain}
            recalibration(model, GIVEN.training_set, splits, stats, None, 4, 5)  # type: ignore[arg-type]


def shifted(model: nn.Module) -> None:
    pixels = torch.randint(0, 256, (8, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(pixels, torch.arange(8) % 3)
    robustness(model, split, lambda part: Doubles(part.images / 255, part.labels), STATS, 4, 3.0)


def all_of_it(model: nn.Module) -> None:
    """Everything that may be done inside `preserved`."""
    with preserved(model):
        torch.manual_seed(3)
        np.random.seed(4)
        random.seed(5)
        model.train()
        model(GIVEN.batch)
        for module in model.modules():
            module.novelty, module.tensor = 3, torch.zeros(2)  # type: ignore[assignment]
            module.register_forward_hook(lambda module, inputs, output: None)
            module._forward_pre_hooks.clear()
            if hasattr(module, "momentum"):
                module.momentum = 0.9
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    buffer.fill_(7)
                    module._buffers[name] = torch.ones(3)
            module.register_buffer("another", torch.zeros(1))
        model.eval()


MEASURES: dict[str, Callable[[nn.Module], None]] = {
    "stages": in_stages,
    "population": by_population,
    "precise": by_precise,
    "mixed": mixed,
    "adopted": with_others,
    "training statistics": as_in_training,
    "recalibration": recalibrating,
    "robustness": shifted,
}
ANY_CALL = MEASURES | {"probe": in_full}
MEASURES["preserved"] = all_of_it


@pytest.mark.slow
@for_each("name", MODELS)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = MODELS[name]()
    for measure in MEASURES.values():
        before = picture(model)
        measure(model)
        assert_unchanged(before, picture(model))


# ---------------------------------------------------------------- interrupted


def route() -> tuple[str, ...]:
    """Return the functions of bnlab.measure that the forward pass was called from, the outermost first."""
    names, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(MEASURE):
            names.append(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(reversed(names))


class Fuse:
    """A hook on the first module, which every forward pass comes to: raises at call `at`, counted from 0."""

    def __init__(self, at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        self.at, self.error = at, error
        self.routes: list[tuple[str, ...]] = []

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.routes.append(route())
        if len(self.routes) - 1 == self.at:
            raise self.error("half-way")


def fused(model: nn.Module, fuse: Fuse) -> Any:
    return next(model.children()).register_forward_pre_hook(fuse)


def interrupted(model: nn.Module, measure: Callable[[nn.Module], None], at: int, error: type[BaseException]) -> None:
    handle = fused(model, Fuse(at, error))
    before = picture(model)
    with pytest.raises(error, match="half-way"):
        measure(model)
    assert_unchanged(before, picture(model))
    handle.remove()


def middles(routes: list[tuple[str, ...]]) -> Iterator[int]:
    """Yield the second of the calls that came by each route, when the first has left its marks, or the only one."""
    for each in dict.fromkeys(routes):
        calls = [call for call, way in enumerate(routes) if way == each]
        yield calls[:2][-1]


@pytest.mark.slow
@for_each("name", MODELS)
def test_so_it_is_after_a_full_probe_and_when_any_phase_of_it_is_interrupted(name: str) -> None:
    model = MODELS[name]()
    whole = Fuse()
    handle = fused(model, whole)
    before = picture(model)
    in_full(model)
    assert_unchanged(before, picture(model))
    handle.remove()
    phases = {function for way in whole.routes for function in way}
    expected = {"_norms_training", "_training", "_stored", "_agreement"}
    if learners(model):
        expected |= {"plan", "population", "_shrinkage", "precise", "_curve", "_stored_ways"}
    assert expected <= phases
    turns = list(enumerate(middles(whole.routes)))
    if {name.replace("-cnn", "-mlp"), name.replace("-mlp", "-cnn")} <= MODELS.keys() - OTHERS.keys():
        turns = turns[name.endswith("-mlp") :: 2]  # the other half by the strategy's other model
    for turn, call in turns:
        interrupted(model, in_full, call, KeyboardInterrupt if turn // 2 % 2 else RuntimeError)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_so_it_is_at_any_call_from_any_mode(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(MODELS)))
    measure = ANY_CALL[data.draw(st.sampled_from(list(ANY_CALL)))]
    model = MODELS[name]()
    for module in model.modules():
        module.training = data.draw(st.booleans())
    whole = Fuse()
    handle = fused(model, whole)
    measure(model)
    handle.remove()
    if whole.routes:
        call = data.draw(st.integers(0, len(whole.routes) - 1))
        interrupted(model, measure, call, data.draw(st.sampled_from([KeyboardInterrupt, RuntimeError, SystemExit])))


@for_each("error", [KeyboardInterrupt, RuntimeError])
def test_so_it_is_when_the_body_of_a_context_is_interrupted(error: type[BaseException]) -> None:
    model = ours("batch", "cnn")
    layer = running_layers(model)[0]
    contexts: list[Callable[[], Any]] = [
        lambda: preserved(model),
        lambda: evaluating(model),
        lambda: training_statistics(model),
        lambda: mixed_with_batch(model, 2.0),
        lambda: adopted(model, {layer: (torch.ones(8), torch.ones(8))}),
    ]
    for context in contexts:
        before = picture(model)
        with pytest.raises(error), context():
            raise error
        assert_unchanged(before, picture(model))


def test_a_mode_that_cannot_be_set_is_no_reason_to_lose_the_others() -> None:
    class Refusing(nn.Module):
        def train(self, mode: bool = True) -> Refusing:
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Dropout(), Refusing(), nn.BatchNorm2d(2))
    before = picture(model)
    for context in (evaluating, training_statistics):
        with pytest.raises(KeyboardInterrupt), context(model):
            pass
        assert_unchanged(before, picture(model))


# ---------------------------------------------------------------- what the contexts do


def test_only_normalization_layers_act_as_in_training() -> None:
    model = head(nn.BatchNorm2d(4))
    modes = [module.training for module in model.modules()]
    norm, dropout = model[1], model[3]  # type: ignore[index]
    with training_statistics(model) as start_again:
        kept = norm.running_mean.clone()
        assert norm.training
        assert not dropout.training
        assert [module for module in model.modules() if module.training] == [norm]
        first = model(GIVEN.batch)
        assert not torch.equal(norm.running_mean, kept)
        assert norm.num_batches_tracked == 4
        start_again()
        assert torch.equal(norm.running_mean, kept)
        assert norm.num_batches_tracked == 3
        assert norm.training
        torch.testing.assert_close(model(GIVEN.batch), first, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes


def test_renorm_takes_every_batch_for_the_next_step_after_the_same_past() -> None:
    model = ours("renorm", "mlp")
    with training_statistics(model) as start_again:
        first = model(GIVEN.batch)
        drifted = model(GIVEN.batch)
        start_again()
        again = model(GIVEN.batch)
    assert torch.equal(first, again)
    assert not torch.equal(first, drifted)


def test_layers_that_the_model_keeps_frozen_stay_so() -> None:
    """`train` of the model itself leaves its second module, a batch norm, in evaluation."""
    model = OTHERS["frozen while training"]()
    frozen, other = model[1], model[2]  # type: ignore[index]
    assert learners(model) == [other]
    with training_statistics(model) as start_again:
        for _ in range(2):
            assert not frozen.training
            assert other.training
            start_again()


def test_learners_are_those_that_average_their_batches() -> None:
    for name in ("batch", "ghost", "sync", "renorm", "streaming", "online"):
        model = ours(name, "mlp")
        assert len(learners(model)) == 2
    for name in ("population", "frozen", "layer", "group", "none"):
        assert learners(ours(name, "mlp")) == []
    assert [type(layer).__name__ for layer in learners(OTHERS["kept in parameters"]())] == [
        "InParameters",
        "BatchNorm2d",
    ]
    assert [type(layer).__name__ for layer in learners(OTHERS["FrozenBatchNorm2d"]())] == ["BatchNorm2d"]
    assert learners(OTHERS["BatchNorm2d without statistics"]()) == []


def test_what_a_model_draws_is_that_of_the_pass_wherever_its_numbers_come_from() -> None:
    def drawn(number: int) -> tuple[float, ...]:
        with preserved(nn.Identity()):
            seeded(number)
            return torch.rand(()).item(), float(np.random.rand()), random.random()

    first, other = drawn(1), drawn(2)
    np.random.rand()
    random.random()
    assert drawn(1) == first
    assert all(a != b for a, b in zip(first, other, strict=True))
