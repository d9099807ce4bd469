"""The loop: the same steps as plain torch, the same bits twice, honest ends, and evaluations that leave no trace."""

from __future__ import annotations

import copy
import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_cases import for_each
from helpers_training import train
from torch import nn

from bnlab.config import compose
from bnlab.errors import IncompatibleError
from bnlab.experiment import setup
from bnlab.experiment.config import parse_config
from bnlab.experiment.run import preflight
from bnlab.measure.discrepancy import Gap, calibration_error, logits_of, score
from bnlab.measure.modes import evaluating, training_statistics
from bnlab.models.model import build, models, norm_layers
from bnlab.norms.strategy import strategies
from bnlab.seeding import derived_seed, generator
from bnlab.training import checkpoint
from bnlab.training.evaluation import evaluation_steps
from bnlab.training.optim import AdamW, Sgd

SHORT = ("data.batch_size=32", "trainer.steps=30", "eval.every=0.5", "model.widths=[8,16]", "trainer.device=cpu")
SHORT += ("eval.probe_samples=128",)


def tree_of(*overrides: str) -> dict[str, Any]:
    (tree,) = compose.jobs([*SHORT, *overrides], multirun=False)
    return tree


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """Train in a fresh folder; return it."""
    count = 0

    def trained_by(*overrides: str) -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / f"run{count}"
        train([*SHORT, *overrides], folder)
        return folder

    return trained_by


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


# ---------------------------------------------------------------- the steps themselves


PLAIN = [
    (norm, optimizer, "all", 1.0) for norm in ("none", "batch", "ghost", "layer") for optimizer in ("sgd", "adamw")
]
TOLD_APART = [("batch", "sgd", "all", 0.1), ("layer", "sgd", "norm", 1.0), ("batch", "adamw", "norm", 3.0)]


@for_each("norm, optimizer, only, norm_lr", PLAIN + TOLD_APART)
def test_the_loop_takes_the_steps_that_plain_torch_takes(
    trained: Callable[..., Path], norm: str, optimizer: str, only: str, norm_lr: float
) -> None:
    overrides = (f"norm={norm}", f"optim={optimizer}", "schedule=cosine", "trainer.label_smoothing=0.1")
    overrides += ("optim.lr=0.01", "data.shift=1", f"optim.only={only}", f"optim.norm_lr={norm_lr}")
    folder = trained(*overrides)
    config = parse_config(tree_of(*overrides))
    bundle = setup.bundle_of(config.data)
    model = build(config.model, config.norm, bundle.image_shape, bundle.num_classes, config.seed)
    model = model.to(memory_format=torch.channels_last)
    norms = {id(p) for _, layer in norm_layers(model) for p in layer.parameters()}
    rest = {"params": [p for p in model.parameters() if id(p) not in norms], "weight_decay": config.optim.weight_decay}
    groups = [rest] if only == "all" else []
    if norms:
        groups += [{"params": [p for p in model.parameters() if id(p) in norms], "weight_decay": 0.0}]
    plain: torch.optim.Optimizer
    if optimizer == "sgd":
        plain = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, fused=True)
    else:
        plain = torch.optim.AdamW(groups, lr=0.01, fused=True)
    batches = setup.device_batches(config, bundle, bundle.train, torch.device("cpu"), training=True)
    losses: list[float] = []
    model.train()
    for epoch in range(2):
        for images, labels in batches.epoch(epoch):
            if len(losses) == 30:
                break
            for group in plain.param_groups:
                group["lr"] = 0.01 * (1 + math.cos(math.pi * len(losses) / 30)) / 2
                group["lr"] *= 1.0 if group["weight_decay"] else norm_lr
            plain.zero_grad()
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            loss.backward()
            plain.step()
            losses.append(loss.item())
    rows = list(csv.DictReader((folder / "steps.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == losses
    saved = checkpoint.load(folder)
    assert saved["step"] == 30
    for name, value in model.state_dict().items():
        assert torch.equal(saved["model"][name], value), name


@pytest.mark.slow
@for_each("norm", list(strategies))
def test_same_seed_same_bits(trained: Callable[..., Path], norm: str) -> None:
    more = (f"norm={norm}", "model.dropout=0.2", "data.shift=1", "data.flip=true")
    more += ("trainer.steps=10", "eval.every=0.2")  # evaluated after 0, 8 and 10
    first, second, other = trained(*more), trained(*more), trained(*more, "seed=1")
    for table in ("steps.csv", "evals.csv", "layers.csv"):
        assert (first / table).read_bytes() == (second / table).read_bytes()
        if table != "layers.csv" or strategies[norm]().facts.keeps_stats:
            assert (first / table).read_bytes() != (other / table).read_bytes()
    one, two = checkpoint.load(first)["model"], checkpoint.load(second)["model"]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_weights_and_order_are_the_same_under_every_strategy() -> None:
    seen = []
    for norm in strategies:
        config = parse_config(tree_of(f"norm={norm}", "data.shift=2", "seed=7"))
        bundle = setup.bundle_of(config.data)
        model = setup.model_of(config, bundle)
        batches = setup.device_batches(config, bundle, bundle.train, torch.device("cpu"), training=True)
        weights = [m.weight.detach() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        data = [part for batch in batches.epoch(1) for part in batch]
        seen.append(weights + data)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_purposes_draw_apart() -> None:
    assert len({derived_seed(s, p) for s in range(50) for p in ("weights", "order", "augmentation", "dropout")}) == 200
    first = torch.rand(3, generator=generator(0, "order"))
    torch.rand(100, generator=generator(0, "weights"))
    assert torch.equal(first, torch.rand(3, generator=generator(0, "order")))


@for_each("spec", [Sgd(), AdamW()], ids=lambda s: s.name)
def test_norm_parameters_are_spared_from_decay_unless_asked(spec: Sgd | AdamW) -> None:
    model = build(models["cnn"](widths=(4,)), strategies["batch"](), (1, 8, 8), 10, 0)
    decayed, spared = spec.groups(model)
    assert [p.shape for p in spared["params"]] == [(4,), (4,)]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (spec.weight_decay, 0.0)
    (all_of_them,) = type(spec)(decay_norm=True).groups(model)
    assert len(all_of_them["params"]) == len(list(model.parameters()))
    decayed, slow = type(spec)(decay_norm=True, norm_lr=0.1).groups(model)
    assert (slow["weight_decay"], slow["factor"], decayed["factor"]) == (spec.weight_decay, 0.1, 1.0)


def test_norm_alone_is_trained_and_the_rest_stays_as_drawn(trained: Callable[..., Path]) -> None:
    folder = trained("norm=batch", "optim.only=norm")
    config = parse_config(tree_of("norm=batch", "optim.only=norm"))
    bundle = setup.bundle_of(config.data)
    drawn = setup.model_of(config, bundle)
    ours = {f"{name}.{own}" for name, layer in norm_layers(drawn) for own, _ in layer.named_parameters()}
    saved = checkpoint.load(folder)["model"]
    for name, value in drawn.named_parameters():
        assert torch.equal(saved[name], value) == (name not in ours), name
    assert summary_of(folder)["curve"]["train.loss"][-1] < summary_of(folder)["curve"]["train.loss"][0]
    optimizer = config.optim.make(drawn)
    F.cross_entropy(drawn(torch.rand(4, *bundle.image_shape)), torch.arange(4)).backward()
    assert {name for name, p in drawn.named_parameters() if p.grad is not None} == ours
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(ours)


@for_each("norm", ["norm=none", "norm=batch norm.affine=false"])
def test_norm_alone_needs_something_to_train(norm: str) -> None:
    with pytest.raises(IncompatibleError, match=r"optim.only=norm: no norm layer of this model learns anything\n"):
        preflight([tree_of(*norm.split(), "optim.only=all"), tree_of(*norm.split(), "optim.only=norm")])


# ---------------------------------------------------------------- records and ends


def test_a_run_leaves_its_whole_record(trained: Callable[..., Path]) -> None:
    folder = trained("norm=ghost", "norm.size=16", "norm.momentum=0.05")
    summary = summary_of(folder)
    steps = list(csv.DictReader((folder / "steps.csv").read_text().splitlines()))
    times = list(csv.DictReader((folder / "times.csv").read_text().splitlines()))
    evals = list(csv.DictReader((folder / "evals.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in steps] == [int(row["step"]) for row in times] == list(range(1, 31))
    assert [int(row["warmup"]) for row in times] == [1] * 10 + [0] * 20
    assert all(float(row["step_ms"]) > 0 for row in times)
    assert summary["curve"]["step"] == [0, 20, 30]  # 39 batches an epoch, so half an epoch is 20 (19.5)
    last = {(r["split"], r["metric"]): float(r["value"]) for r in evals if r["step"] == "30"}
    assert last["test", "accuracy"] == summary["curve"]["test.accuracy"][-1]
    assert {split for split, _ in last} == {"train", "valid", "test"}
    assert summary["initial_share"]["share_left"] == pytest.approx(0.95**30)
    assert 0 < summary["discrepancy_seconds"] < summary["eval_seconds"]
    assert summary["discrepancy_share"] == summary["discrepancy_seconds"] / summary["train_seconds"]
    assert summary["state"] == "done"
    assert (summary["steps"], summary["unnormalizable_batches"]) == (30, 0)
    environment = json.loads((folder / "environment.json").read_text())
    assert environment == summary["environment"]
    assert environment["device"] == "cpu"
    assert parse_config(compose.plain(_yaml(folder / "config.yaml"))).norm == strategies["ghost"](
        size=16, momentum=0.05
    )
    assert "done after 30 steps" in (folder / "run.log").read_text()


def _yaml(path: Path) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.load(path)


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(trained: Callable[..., Path]) -> None:
    folder = trained("norm=none", "optim.lr=1e9", "schedule=constant", "trainer.steps=300")
    summary = summary_of(folder)
    rows = list(csv.DictReader((folder / "steps.csv").read_text().splitlines()))
    assert summary["state"] == "diverged"
    assert summary["diverged_at"] == len(rows) == int(rows[-1]["step"]) < 300
    assert [row["finite"] for row in rows] == ["1"] * (len(rows) - 1) + ["0"]
    assert not math.isfinite(float(rows[-1]["loss"]))
    assert summary["curve"]["step"][0] == 0  # what was measured before is kept
    assert json.loads((folder / "status.json").read_text())["state"] == "diverged"


def test_an_exception_costs_the_job_its_result_and_nothing_else(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the optimizer fell over")

    monkeypatch.setattr(Sgd, "make", broken)
    folder = trained("norm=batch")
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: the optimizer fell over")
    assert "Traceback" in (folder / "run.log").read_text()
    assert not (folder / "summary.json").exists()


def test_an_interruption_is_recorded_and_goes_on(
    trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sgd, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained("norm=batch")
    assert json.loads((tmp_path / "run1" / "status.json").read_text())["state"] == "interrupted"


def test_steps_replace_epochs(trained: Callable[..., Path]) -> None:
    assert summary_of(trained("trainer.steps=7", "trainer.epochs=99"))["steps"] == 7
    assert summary_of(trained("trainer.steps=null", "trainer.epochs=0.5"))["steps"] == 20


def test_batches_that_cannot_be_normalized_are_counted(trained: Callable[..., Path]) -> None:
    # 1,237 training samples in batches of 103: twelve full ones and a last one of a single sample
    more = ("model=mlp", "data.batch_size=103", "trainer.steps=26")
    kept = summary_of(trained(*more, "norm=batch"))
    assert kept["unnormalizable_batches"] == 2
    dropped = summary_of(trained(*more, "norm=batch", "data.last_batch=drop"))
    assert dropped["unnormalizable_batches"] == 0


def test_bfloat16_trains(trained: Callable[..., Path]) -> None:
    summary = summary_of(trained("trainer.precision=bfloat16", "norm=ghost"))
    assert summary["state"] == "done"
    assert summary["curve"]["test.loss"][-1] < summary["curve"]["test.loss"][0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs C++")
def test_a_compiled_run_learns_the_same(trained: Callable[..., Path]) -> None:
    short = ("trainer.steps=5", "model.widths=[8]")
    eager, compiled = (summary_of(trained(*short, f"trainer.compile={c}")) for c in ("false", "true"))
    assert compiled["curve"]["test.loss"][-1] == pytest.approx(eager["curve"]["test.loss"][-1], rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_trains_as_the_cpu_does(trained: Callable[..., Path]) -> None:
    here, there = (summary_of(trained(f"trainer.device={d}", "norm=batch")) for d in ("cpu", "cuda"))
    assert there["environment"]["gpu"]
    assert there["step_ms"]["median"] > 0
    assert there["curve"]["test.loss"][-1] == pytest.approx(here["curve"]["test.loss"][-1], rel=0.05)


# ---------------------------------------------------------------- evaluations


@for_each(
    ("every", "per_epoch", "total", "expected"),
    [
        (1.0, 10, 30, [10, 20, 30]),
        (0.25, 10, 20, [2, 5, 8, 10, 12, 15, 18, 20]),
        (5.0, 10, 30, [30]),
        (0.01, 10, 3, [1, 2, 3]),
    ],
)
def test_evaluations_come_every_so_many_epochs_and_last(
    every: float, per_epoch: int, total: int, expected: list[int]
) -> None:
    assert list(evaluation_steps(every, per_epoch, total)) == expected


def snapshot(model: nn.Module) -> Any:
    counts = [layer.num_unnormalizable for _, layer in norm_layers(model)]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return copy.deepcopy((state, [m.training for m in model.modules()], counts, torch.get_rng_state()))


def same(one: Any, other: Any) -> bool:
    tensors = all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    return tensors and one[1:3] == other[1:3] and torch.equal(one[3], other[3])


@for_each("norm", list(strategies))
@for_each("interrupted", [False, True])
def test_evaluations_leave_the_model_as_it_was(norm: str, interrupted: bool) -> None:
    model = build(models["cnn"](widths=(8, 8), dropout=0.5), strategies[norm](), (1, 8, 8), 10, 0)
    model.train()
    model[0].eval()  # a mode of its own has to come back too
    batches = [(torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)) for _ in range(3)]
    model(batches[0][0])
    before = snapshot(model)
    for context in (evaluating, training_statistics):
        try:
            with context(model):
                logits_of(model, iter(batches))
                if interrupted:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert interrupted
        assert same(before, snapshot(model))


def test_training_statistics_are_the_batchs_own_without_dropout() -> None:
    model = build(models["cnn"](widths=(4,), dropout=0.5), strategies["batch"](), (1, 8, 8), 10, 0)
    x = torch.randn(16, 1, 8, 8) * 3 + 1
    with training_statistics(model):
        found, _ = logits_of(model, iter([(x, torch.zeros(16, dtype=torch.int64))]))
    conv, norm, act, pool, flatten, _dropout, head = model
    h = conv(x)
    h = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), keepdim=True, correction=0) + norm.eps).sqrt()
    torch.testing.assert_close(found, head(flatten(pool(act(h)))), rtol=1e-4, atol=1e-5)


def test_score_and_gap_by_hand() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    trained = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]])
    evaluated = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    found = score(evaluated, labels)
    assert found.accuracy == 0.75
    by_hand = [
        math.log(1 + math.exp(-2)),
        math.log(1 + math.exp(1)),
        math.log(1 + math.exp(-1)),
        math.log1p(math.exp(-5)),
    ]
    assert found.loss == pytest.approx(sum(by_hand) / 4)
    between = Gap(trained, evaluated, labels)
    assert between.hits.mean() == 0.5 - 0.75
    assert between.flips.mean() == 0.75
    assert between.losses.mean() == pytest.approx(score(trained, labels).loss - found.loss)
    divergences = []
    for t, e in zip(trained.tolist(), evaluated.tolist(), strict=True):
        p, q = ([math.exp(v) / sum(map(math.exp, logits)) for v in logits] for logits in (t, e))
        divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    assert between.kl.mean() == pytest.approx(sum(divergences) / 4, rel=1e-12)
    # differences (0,0) (-1,1) (1,-1) (-5,3); evaluation logits 2, 1, 1, 5 and zeros
    assert between.logit_rms == pytest.approx(math.sqrt((1 + 1 + 1 + 1 + 25 + 9) / (4 + 1 + 1 + 25)))
    equal = Gap(trained, trained, labels)
    assert not any(difference.any() for difference in (equal.hits, equal.losses, equal.flips, equal.kl))
    assert equal.logit_rms == 0
    nothing = torch.zeros(4, 2)
    assert Gap(nothing, nothing, labels).logit_rms == 0


def test_calibration_error_by_hand() -> None:
    """Five samples of confidence 0.95 (3 right), two of 0.55 (both wrong), one at the edge of a bin (right)."""

    def logits(confidence: float) -> list[float]:
        return [math.log(confidence), math.log(1 - confidence)]

    made = torch.tensor([*[logits(0.95)] * 5, *[logits(0.55)] * 2, logits(0.8)], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
    by_hand = 5 / 8 * abs(3 / 5 - 0.95) + 2 / 8 * 0.55 + 1 / 8 * (1 - 0.8)
    assert calibration_error(made, labels) == pytest.approx(by_hand, rel=1e-12)
    both = torch.tensor([logits(0.68), logits(0.72)], dtype=torch.float64)  # one bin, (10/15, 11/15]: they even out
    assert calibration_error(both, torch.tensor([0, 1])) == pytest.approx(abs(1 / 2 - 0.70), rel=1e-12)
    apart = torch.tensor([logits(0.65), logits(0.68)], dtype=torch.float64)  # two bins: they do not
    assert calibration_error(apart, torch.tensor([0, 1])) == pytest.approx((0.35 + 0.68) / 2, rel=1e-12)
    certain = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    assert calibration_error(certain, torch.tensor([0, 1])) == 0


@for_each("stats", ["running", "batch"])
@for_each("norm", ["none", "layer", "instance", "group", "rms"])
def test_strategies_without_statistics_have_no_gap_at_all(trained: Callable[..., Path], norm: str, stats: str) -> None:
    """Bit for bit: both modes see the same batches, though the split is evaluated in others."""
    more = ("model.dropout=0.3", f"eval.stats={stats}", "eval.batch_size=50", "eval.probe_samples=100")
    more += ("trainer.steps=10",)
    summary = summary_of(trained(f"norm={norm}", *more))
    for name in ("acc_gap", "loss_gap", "flip_rate", "kl", "logit_rms"):
        assert set(summary["curve"][f"test.{name}"]) == {0.0}, name
    assert summary["layers"] == {}
