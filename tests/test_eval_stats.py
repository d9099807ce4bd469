"""Which statistics an evaluation normalizes with: each by its formula, and the model afterwards as it was before."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_cases import for_each
from helpers_training import train
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.data.bundle import DataBundle, Split
from bnlab.errors import IncompatibleError
from bnlab.measure.discrepancy import logits_of, score
from bnlab.measure.folding import folded
from bnlab.measure.layer_statistics import adopt, running_layers
from bnlab.measure.modes import evaluating, training_statistics
from bnlab.measure.population_statistics import mixed_with_batch, plan, population
from bnlab.measure.refresh import Refresh
from bnlab.models.model import ModelSpec, build, models, norm_layers
from bnlab.norms.strategy import strategies
from bnlab.training.evaluation import EvalConfig, Evaluator, check_eval

SHAPE = (2, 8, 8)
SPECS: dict[str, ModelSpec] = {
    "mlp": models["mlp"](widths=(7, 6)),
    "mlp-bias": models["mlp"](widths=(7, 6, 5), bias="true", norm_every=2, dropout=0.3),
    "cnn": models["cnn"](widths=(3, 4), depth=2),
    "cnn-input": models["cnn"](widths=(3, 4), input_norm="batch"),
    "cnn-frozen": models["cnn"](widths=(3, 4, 4), norm_every=2, norm_rest="frozen"),
    "resnet": models["resnet"](depth=8, width=3),
    "resnet-dropped": models["resnet"](depth=8, width=3, branch="skip_init", dropout=0.3, dropout_place="before"),
}
STATS = ("running", "precise", "population", "batch", "test", "mixed", "none", "folded")


def split(count: int, seed: int) -> Split:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *SHAPE), generator=draw, dtype=torch.uint8)
    return Split(pixels, torch.randint(0, 4, (count,), generator=draw))


class Doubles(Batches):
    """A split in float64."""

    def __init__(self, samples: Split) -> None:
        super().__init__(samples, batch_size=8)
        self._images = self._images.double()

    @cached_property
    def whole(self) -> tuple[Tensor, Tensor]:
        return next(self.sequential(len(self)))


BUNDLE = DataBundle("made", tuple("abcd"), split(40, 0), split(12, 1), split(23, 2), "0")
TRAIN, VALID, TEST = Doubles(BUNDLE.train), Doubles(BUNDLE.valid), Doubles(BUNDLE.test)


def trained(spec: str, norm: str, steps: int = 5, **p: Any) -> nn.Module:
    """A float64 model after some steps: gamma, beta and running statistics are all moved."""
    model = build(SPECS[spec], strategies[norm](**p), SHAPE, 4, 0).double().train()
    with torch.no_grad():
        for _, layer in norm_layers(model):
            for parameter in layer.parameters():
                parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    source = Refresh(model, TRAIN, nullcontext, torch.device("cpu"))
    source.begin()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(steps):
        source.before_step(step)
        for images, labels in TRAIN.epoch(step):
            F.cross_entropy(model(images), labels).backward()
        source.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def evaluator(stats: str, **p: Any) -> Evaluator:
    config = EvalConfig(stats=stats, batch_size=p.pop("batch_size", 10), probe_samples=16, **p)  # type: ignore[arg-type]
    return Evaluator(BUNDLE, config, 8, TRAIN, lambda split, training: Doubles(split), nullcontext)


def figures(model: nn.Module, stats: str, **p: Any) -> dict[str, float]:
    return {f"{m.split}.{m.metric}": m.value for m in evaluator(stats, **p).evaluate(model).figures}


def loss_on(model: nn.Module, batches: Batches, size: int = 10) -> float:
    return score(*logits_of(model, batches.sequential(size))).loss


def state_of(model: nn.Module) -> Any:
    modes = [module.training for module in model.modules()]
    counts = [layer.num_unnormalizable for _, layer in norm_layers(model)]
    hooks = [len(hooks) for module in model.modules() for hooks in (module._forward_pre_hooks, module._forward_hooks)]
    grads = [p.grad is None for p in model.parameters()]
    return {k: v.clone() for k, v in model.state_dict().items()}, modes, counts, hooks, grads, torch.get_rng_state()


# ---------------------------------------------------------------- folding


@for_each("p", [{}, {"affine": False}, {"eps_outside": True, "eps": 1e-2}], ids=str)
@for_each("norm", ["batch", "ghost", "population", "frozen", "none"])
@for_each("spec", SPECS)
def test_folded_is_evaluation(spec: str, norm: str, p: dict[str, Any]) -> None:
    model = trained(spec, norm, 2, **p, **({"size": 4} if norm == "ghost" else {}))
    model.eval()
    before = state_of(model)
    merged = folded(model)
    assert not merged.training
    assert len(list(norm_layers(merged))) == (spec == "cnn-input")
    wanted, found = model(TEST.whole[0]), merged(TEST.whole[0])
    assert (wanted - found).abs().max() < 1e-12 * wanted.abs().max()
    torch.testing.assert_close(before, state_of(model), rtol=0, atol=0)
    assert found.std() > 0.01


@for_each("norm", list(strategies))
def test_every_strategy_folds_exactly_or_is_refused(norm: str) -> None:
    """And recalibration or a mix with the batch leaves nothing behind, whatever a layer does in training."""
    torch.manual_seed(0)
    model = build(models["cnn"](widths=(8, 8)), strategies[norm](), SHAPE, 4, 0).double().train()
    for images, _ in TRAIN.epoch(0):
        model(images)
    before = state_of(model)
    for stats in ("precise", "mixed"):
        figures(model, stats)
        torch.testing.assert_close(before, state_of(model), rtol=0, atol=0)
    model.eval()
    try:
        merged = folded(model)
    except IncompatibleError:
        assert norm not in ("batch", "ghost", "sync", "renorm", "streaming", "population", "frozen", "none")
    else:
        assert not list(norm_layers(merged))
        torch.testing.assert_close(merged(TEST.whole[0]), model(TEST.whole[0]), rtol=1e-11, atol=1e-11)


def test_folding_keeps_a_transform_of_the_weights() -> None:
    model = trained("cnn", "batch").eval()
    model[0].weight_transform = lambda w: w * 2 + 1  # type: ignore[index, union-attr]
    torch.testing.assert_close(folded(model)(TEST.whole[0]), model(TEST.whole[0]), rtol=0, atol=1e-12)


@for_each(
    ("spec", "norm", "message"),
    [
        (models["cnn"](placement="post"), "batch", r"layer 2 \(BatchLayer\) does not follow .*\nset model\.placement"),
        (models["resnet"](depth=8, placement="post"), "batch", "model.placement=pre"),
        (models["cnn"](), "layer", r"layer 1 \(LayerLayer\) is no affine map per channel"),
        (models["cnn"](input_norm="batch"), "instance", "layer 2 .* is no affine map"),
    ],
)
def test_what_cannot_be_folded_is_refused(spec: ModelSpec, norm: str, message: str) -> None:
    model = build(spec, strategies[norm](), SHAPE, 4, 0)
    with pytest.raises(IncompatibleError, match=message) as error:
        check_eval(model, EvalConfig(stats="folded"))
    assert len(str(error.value).splitlines()) <= 3
    for stats in STATS[:-1]:
        check_eval(model, EvalConfig(stats=stats))  # type: ignore[arg-type]


# ---------------------------------------------------------------- batch, mixed, test


@for_each("spec", ["mlp", "cnn", "resnet"])
def test_batch_is_batch_normalization_in_training_mode(spec: str) -> None:
    model = trained(spec, "batch").eval()
    with mixed_with_batch(model, 0.0):
        found = model(TEST.whole[0])
    with training_statistics(model):
        torch.testing.assert_close(found, model(TEST.whole[0]), rtol=1e-10, atol=1e-12)


@for_each("prior", [0.5, 16.0, 1e9])
def test_mixed_by_hand(prior: float) -> None:
    model = trained("mlp", "ghost", size=4).eval()
    x, n = TEST.whole[0], len(TEST.whole[0])
    with mixed_with_batch(model, prior):
        found = model(x)
    for module in model:  # type: ignore[attr-defined]
        if module in running_layers(model):
            columns = []
            for c, values in enumerate(x.unbind(1)):
                own_mean = sum(values) / n
                own_var = sum((v - own_mean) ** 2 for v in values) / n
                mean = (prior * module.running_mean[c] + n * own_mean) / (prior + n)
                var = (prior * module.running_var[c] + n * own_var) / (prior + n)
                columns.append((values - mean) / (var + 1e-5).sqrt() * module.weight[c] + module.bias[c])
            x = torch.stack(columns, 1)
        else:
            x = module(x)
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-11)


def test_each_batch_is_mixed_with_the_source_and_not_with_the_batch_before_it() -> None:
    model = trained("cnn", "batch").eval()
    x = TEST.whole[0]
    with mixed_with_batch(model, 8.0):
        first = model(x[:10])
        model(x[10:])
        assert torch.equal(model(x[:10]), first)


def test_a_batch_of_one_value_a_channel_keeps_the_source() -> None:
    model = trained("mlp", "batch").eval()
    x = TEST.whole[0][:1]
    alone = model(x)
    with mixed_with_batch(model, 0.0):
        model(TEST.whole[0])
        torch.testing.assert_close(model(x), alone)


def test_test_is_the_whole_split_as_one_batch() -> None:
    model = trained("resnet", "batch")
    found = figures(model, "test")
    for name, batches in (("valid", VALID), ("test", TEST)):
        with training_statistics(model):
            assert found[f"{name}.loss"] == pytest.approx(loss_on(model, batches, len(batches)), rel=1e-6)


# ---------------------------------------------------------------- the evaluator


@for_each("norm", ["batch", "population", "frozen"])
def test_each_choice_evaluates_with_its_statistics(norm: str) -> None:
    """precise and population against a model that was given them by hand; batch in training mode of batch norm."""
    model = trained("cnn", norm)
    other = trained("cnn", norm)
    exact = population(other, plan(other, dict.fromkeys(running_layers(other)), TRAIN))
    found = {stats: figures(model, stats)["test.loss"] for stats in STATS}
    with evaluating(other):
        if norm != "population":
            assert found["running"] == pytest.approx(loss_on(other, TEST), rel=1e-9)
        for layer, statistics in exact.items():
            adopt(layer, *statistics)
        assert found["population"] == pytest.approx(loss_on(other, TEST), rel=1e-6)
    assert found["folded"] == pytest.approx(found["running"], rel=1e-6)
    if norm == "population":
        assert found["running"] == found["population"]
    if norm == "batch":
        with training_statistics(other):
            assert found["batch"] == pytest.approx(loss_on(other, TEST), rel=1e-6)
        assert len(set(found.values())) >= 6  # no two of them are the same statistics


def test_the_batch_size_of_an_evaluation_counts_for_batch_and_mixed_only() -> None:
    model = trained("cnn", "batch")
    for stats in STATS:
        one, other = (figures(model, stats, batch_size=size)["test.loss"] for size in (5, 23))
        assert (one == pytest.approx(other, rel=1e-6)) == (stats not in ("batch", "mixed")), stats


def test_the_prior_leads_from_batch_to_running() -> None:
    model = trained("cnn", "batch")
    none, much = (figures(model, "mixed", prior=prior)["test.loss"] for prior in (0.0, 1e12))
    assert none == pytest.approx(figures(model, "batch")["test.loss"], rel=1e-9)
    assert much == pytest.approx(figures(model, "running")["test.loss"], rel=1e-6)
    assert none != pytest.approx(much, rel=1e-4)


def test_fold_error_is_a_figure_of_the_test_split() -> None:
    model = trained("cnn", "batch")
    (found,) = (m for m in evaluator("folded").evaluate(model).figures if m.metric == "fold_error")
    assert (found.split, found.samples) == ("test", 16)
    assert 0 <= found.value < 1e-6  # logits are compared in float32
    assert "test.fold_error" not in figures(model, "running")


def test_population_layers_evaluate_with_the_statistics_of_the_current_weights() -> None:
    """every=10 after 5 steps: the layers hold those of the initial weights; evaluation takes them anew."""
    model = trained("cnn", "population", every=10)
    found = figures(model, "running")
    with evaluating(model):
        stale = loss_on(model, TEST)
    assert found["test.loss"] != pytest.approx(stale, rel=1e-4)
    assert found["test.loss_gap"] != 0  # training would go on with the old ones
    assert figures(trained("cnn", "population"), "running")["test.loss_gap"] == 0


@for_each("stats", STATS)
@for_each("norm", ["batch", "ghost", "population", "frozen", "none"])
def test_an_evaluation_leaves_the_model_as_it_was(norm: str, stats: str) -> None:
    model = trained("mlp-bias", norm, **({"size": 4} if norm == "ghost" else {})).train()
    model[1].eval()  # type: ignore[index, operator]
    before = state_of(model)
    first = figures(model, stats)
    torch.testing.assert_close(before, state_of(model), rtol=0, atol=0)
    assert first == figures(model, stats)
    forward, left = model[-1].forward, 0  # type: ignore[index, union-attr]

    def interrupted(x: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return forward(x)  # type: ignore[no-any-return, operator]

    for after in (1, 4, 7):
        left = after
        model[-1].forward = interrupted  # type: ignore[index, union-attr]
        with pytest.raises(KeyboardInterrupt):
            figures(model, stats)
        del model[-1].forward  # type: ignore[index, union-attr]
        torch.testing.assert_close(before, state_of(model), rtol=0, atol=0)


@for_each("stats", STATS[:-1])
def test_strategies_without_statistics_do_not_care_unless_they_are_left_out(stats: str) -> None:
    model = trained("cnn", "layer")
    assert (figures(model, stats) == figures(model, "running")) == (stats != "none")


# ---------------------------------------------------------------- runs


def curve_of(folder: Path, *overrides: str) -> dict[str, Any]:
    short = ("trainer.steps=8", "trainer.device=cpu", "trainer.threads=1", "model.widths=[4,8]", "optim.lr=0.02")
    short += ("data.train_size=256", "data.valid_size=64", "data.batch_size=32", "eval.probe_samples=64")
    train([*short, *overrides], folder)
    curve: dict[str, Any] = json.loads((folder / "summary.json").read_text())["curve"]
    return curve


def test_runs_train_alike_and_evaluate_otherwise(tmp_path: Path) -> None:
    curves = {stats: curve_of(tmp_path / stats, f"eval.stats={stats}") for stats in STATS}
    steps = {(tmp_path / stats / "steps.csv").read_bytes() for stats in STATS}
    assert len(steps) == 1
    assert len({tuple(curve["test.loss"]) for curve in curves.values()}) >= 6
    assert all(error < 1e-4 for error in curves["folded"]["test.fold_error"])
    assert "fold_error" in (tmp_path / "folded" / "evals.csv").read_text()
    assert curves["folded"]["test.loss"] == pytest.approx(curves["running"]["test.loss"], rel=1e-4)
    # at step 0 the running statistics are 0 and 1, which no training set has
    assert curves["population"]["test.loss"][0] != pytest.approx(curves["running"]["test.loss"][0], rel=1e-3)


def test_runs_in_bfloat16(tmp_path: Path) -> None:
    narrow = ("trainer.precision=bfloat16", "trainer.steps=2", "model=mlp", "model.widths=[8]", "data.train_size=64")
    for stats in STATS[1:]:
        curve = curve_of(tmp_path / stats, f"eval.stats={stats}", *narrow)
        assert torch.tensor(curve["test.loss"]).isfinite().all()
    curve = curve_of(tmp_path / "through", "norm=population", "norm.through=true", *narrow, "trainer.steps=8")
    assert curve["train.loss"][-1] < curve["train.loss"][0]
