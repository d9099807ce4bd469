"""Batches in micro-batches: the gradient of the whole batch, a norm that sees a part, and what counts by parts."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_bench import CPU, Watched, sections, weights
from helpers_resume import MLP, SHORT, assert_equal, interrupted
from helpers_training import Doubled, Kept, NoEvaluation, digits, train
from helpers_workers import on_workers
from torch import Tensor, nn

from bnlab.bench.arms import contest
from bnlab.bench.stepper import first_batches
from bnlab.bench.straggler_launch import read_sections
from bnlab.config import compose
from bnlab.data.batches import Batches
from bnlab.distributed import ALONE, Workers
from bnlab.errors import ConfigError
from bnlab.experiment import run
from bnlab.experiment.config import check_workers, parse_config
from bnlab.experiment.setup import bundle_of, device_batches
from bnlab.experiment.trained_model import of_run
from bnlab.models.model import build, models, norm_layers
from bnlab.norms.strategy import strategies
from bnlab.training.callbacks import Callback
from bnlab.training.loop import Training, micro_batches, train_step
from bnlab.training.optim import Sgd
from bnlab.training.trainer import TrainerConfig

ON_CPU = ["trainer.device=cpu", "trainer.threads=1", "eval.probe_samples=128"]
TINY = ["model.widths=[4,8]", "data.train_size=363", "trainer.steps=15", *ON_CPU]


def config_of(*overrides: str) -> Any:
    return parse_config(compose.jobs(list(overrides), multirun=False)[0])


def losses_of(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((folder / "steps.csv").read_text().splitlines())]


# ---------------------------------------------------------------- one step, by hand


@pytest.mark.parametrize(
    ("samples", "size", "parts"),
    [(12, 4, [4, 4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 5]), (3, 4, [3]), (3, 1, [1, 1, 1])],
)
def test_a_step_descends_by_the_mean_over_the_batch(samples: int, size: int, parts: list[int]) -> None:
    """Plain SGD on a linear map after a batch norm of its own writing, in float64: w - lr * sum_i n_i / N grad_i."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 5, dtype=torch.float64, generator=draw)
    y = torch.randint(0, 3, (samples,), generator=draw)
    model = nn.Linear(5, 3).double()
    start = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def normalized(part: Tensor) -> Tensor:
        return (part - part.mean(0)) / (part.var(0, correction=0) + 1e-3).sqrt()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss = train_step(lambda part: model(normalized(part)), optimizer, F.cross_entropy, x, y, 0, micro_batch=size)

    assert [len(part) for _, part in micro_batches(x, y, size)] == parts
    bounds = torch.tensor([0, *parts]).cumsum(0).tolist()
    expected = torch.zeros((), dtype=torch.float64)
    for first, end in itertools.pairwise(bounds):
        logits = normalized(x[first:end]) @ start[0].T + start[1]
        expected = expected - torch.log_softmax(logits, 1)[range(end - first), y[first:end]].sum() / samples
    gradients = torch.autograd.grad(expected, start)
    assert torch.allclose(loss, expected, rtol=1e-13)
    for after, before, gradient in zip(model.parameters(), start, gradients, strict=True):
        assert torch.allclose(after, before - 0.5 * gradient, rtol=1e-12, atol=1e-14)


def test_marks_come_after_each_forward_and_each_backward_pass() -> None:
    model = nn.Linear(2, 3)
    seen: list[bool] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    train_step(model, optimizer, F.cross_entropy, x, y, 0, None, lambda: seen.append(model.weight.grad is None), 3)
    assert seen == [True, False, False, False]


# ---------------------------------------------------------------- the loop, in float64


class Rearranged(Batches):
    """Each batch of 32 with its second and third quarter exchanged."""

    def epoch(self, index: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(32).view(4, 8)[[0, 2, 1, 3]].flatten()
        for images, labels in super().epoch(index, start):
            yield images[order], labels[order]


def trained(
    norm: str,
    micro_batch: int | None,
    last_batch: Any,
    workers: Workers = ALONE,
    kind: type[Batches] = Batches,
    accumulate: int = 4,
    **keys: Any,
) -> tuple[dict[str, Tensor], list[float]]:
    """Train 10 steps of 32 out of 120 samples in float64; return the weights and buffers, and the losses."""
    model = build(models["cnn"](widths=(4, 6)), strategies[norm](**keys), (1, 8, 8), 10, seed=0)
    model = nn.Sequential(Doubled(), model.double())
    kept = Kept()
    keys_of_batches: dict[str, Any] = {"rank": workers.rank, "size": workers.size}
    with workers.together(CPU, 30.0):
        Training(
            model=model,
            batches=kind(digits(120), batch_size=32, last_batch=last_batch, seed=5, **keys_of_batches),
            evaluator=NoEvaluation(),  # type: ignore[arg-type]
            optimizer=Sgd(lr=0.1).make(model),
            rate_of=lambda step: 0.1 / (1 + step),
            total_steps=10,
            config=TrainerConfig(label_smoothing=0.1, device="cpu", accumulate=accumulate if micro_batch else 1),
            eval_every=1.0,
            device=CPU,
            recorder=kept,
            callback=Callback(),
            workers=workers,
            micro_batch=micro_batch,
        ).run()
    return kept.state, kept.losses


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor], *, buffers: bool = True) -> None:
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        if buffers or not ("running" in key or "num_batches" in key):
            assert torch.allclose(mine[key], value, rtol=1e-11, atol=1e-12), key


@pytest.mark.parametrize("last_batch", ["keep", "drop", "merge"])
def test_micro_batches_are_ghosts(last_batch: Any) -> None:
    """The last batch has 24 or 56 samples. Running statistics move once a part: as those of sequential ghosts."""
    state, losses = trained("batch", 8, last_batch)
    ghosts, of_ghosts = trained("ghost", None, last_batch, size=8, update="sequential")
    assert losses == pytest.approx(of_ghosts, rel=1e-6)  # recorded in float32
    assert_same(state, ghosts)
    pooled, _ = trained("ghost", None, last_batch, size=8)
    assert_same(state, pooled, buffers=False)
    running = next(key for key in state if key.endswith("running_mean"))
    assert not torch.allclose(state[running], pooled[running], rtol=1e-3)
    whole, _ = trained("batch", None, last_batch)
    assert not torch.allclose(state["1.0.weight"], whole["1.0.weight"], rtol=1e-3)


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_what_reads_no_batch_is_trained_alike(norm: str) -> None:
    state, losses = trained(norm, 8, "keep")
    whole, of_whole = trained(norm, None, "keep")
    assert losses == pytest.approx(of_whole, rel=1e-6)
    assert_same(state, whole)


def on_two(workers: Workers) -> list[tuple[dict[str, Tensor], list[float]]]:
    return [trained(norm, 8, "drop", workers, accumulate=2) for norm in ("batch", "sync", "layer")]


@pytest.mark.slow
def test_two_workers_accumulate_as_one_process() -> None:
    """Worker 0 has samples 0-7 and 8-15, worker 1 16-23 and 24-31; sync's parts are of both: 0-7 with 16-23."""
    expected = [
        trained("ghost", None, "drop", size=8),
        trained("batch", 16, "drop", kind=Rearranged, accumulate=2),
        trained("layer", None, "drop"),
    ]
    for rank_of in on_workers(2, on_two):
        for (state, losses), (whole, of_whole), is_local in zip(rank_of, expected, (True, False, False), strict=True):
            assert losses == pytest.approx(of_whole, rel=1e-6)
            assert_same(state, whole, buffers=not is_local)


# ---------------------------------------------------------------- runs


def test_a_run_is_that_of_ghosts(tmp_path: Path) -> None:
    """Float32; a last batch of 43 samples: parts of 16, 16 and 11."""
    ghosts = ["norm=ghost", "norm.size=16", "norm.update=sequential"]
    assert train([*TINY, "norm=batch", "trainer.accumulate=4"], tmp_path / "parts").state == "done"
    assert train([*TINY, *ghosts], tmp_path / "ghosts").state == "done"
    assert losses_of(tmp_path / "parts") == pytest.approx(losses_of(tmp_path / "ghosts"), abs=2e-5)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("parts", "ghosts")]
    mine, theirs = (summary["initial_share"] for summary in summaries)
    assert mine["share_left"] == pytest.approx(0.9 ** (15 * 4)) == theirs["share_left"]
    assert mine["half_life_steps"] == pytest.approx(theirs["half_life_steps"])
    curves = [summary["curve"]["test.loss"] for summary in summaries]
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)


@pytest.mark.parametrize("through", ["true", "false"])
def test_statistics_of_the_training_set_do_not_see_the_parts(tmp_path: Path, through: str) -> None:
    keys = [*TINY, "norm=population", f"norm.through={through}", "trainer.steps=6"]
    for parts in (1, 4):
        assert train([*keys, f"trainer.accumulate={parts}"], tmp_path / str(parts)).state == "done"
    assert losses_of(tmp_path / "4") == pytest.approx(losses_of(tmp_path / "1"), abs=2e-5)


def test_a_run_in_parts_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    keys = [*SHORT, *MLP, "norm=batch", "trainer.accumulate=3"]
    interrupted(keys, tmp_path / "resumed", evaluation=8)
    assert train(keys, tmp_path / "resumed").state == "done"
    train(keys, tmp_path / "whole")
    assert_equal(tmp_path / "resumed", tmp_path / "whole")


def test_in_bfloat16_the_parts_are_ghosts_too(tmp_path: Path) -> None:
    common = [*TINY, "trainer.precision=bfloat16", "trainer.steps=5"]
    train([*common, "trainer.accumulate=4"], tmp_path / "parts")
    train([*common, "norm=ghost", "norm.size=16"], tmp_path / "ghosts")
    assert losses_of(tmp_path / "parts") == pytest.approx(losses_of(tmp_path / "ghosts"), rel=0.02)


@pytest.mark.slow
def test_compiled_the_parts_are_those_of_an_eager_run(tmp_path: Path) -> None:
    common = [*TINY, "data.last_batch=drop", "trainer.accumulate=2", "trainer.steps=4"]
    common += ["model=mlp", "model.widths=[8]"]  # a network of convolutions is compiled in test_training.py
    train(common, tmp_path / "eager")
    train([*common, "trainer.compile=true"], tmp_path / "compiled")
    assert losses_of(tmp_path / "compiled") == pytest.approx(losses_of(tmp_path / "eager"), abs=2e-5)


# ---------------------------------------------------------------- what counts by parts


def test_a_batch_of_statistics_is_a_part(tmp_path: Path) -> None:
    config = config_of("trainer.accumulate=4")
    assert (config.batch_of_statistics(1), config.batch_of_statistics(2)) == (16, 8)
    assert (config.micro_batch(1), config.micro_batch(2), config_of().micro_batch(1)) == (16, 8, None)
    sync = config_of("norm=sync", "trainer.accumulate=4")
    assert (sync.batch_of_statistics(2), sync.micro_batch(2)) == (16, 8)
    keys = [*TINY, "norm=renorm", "trainer.accumulate=4", "data.last_batch=drop"]
    assert train(keys, tmp_path / "run").state == "done"
    trained_model = of_run(tmp_path / "run")
    assert trained_model.probe("test").batch_size == 16
    (layer, *_) = [layer for _, layer in norm_layers(trained_model.model)]
    assert layer.total_steps == 60 == int(layer.num_batches_tracked)  # the schedule of the bounds has come to its end


def test_a_bench_takes_the_steps_of_a_training_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    (section,) = sections("norm=none,batch", "trainer.accumulate=4")
    watched = Watched(monkeypatch)
    one = contest(section).make["batch"]()
    figures = one.step()
    assert len(figures) == 5
    assert figures[0] == pytest.approx(sum(figures[1:4]))
    config = section.arms[1].config
    bundle = bundle_of(config.data)
    (images, labels), *_ = first_batches(device_batches(config, bundle, bundle.train, CPU, training=True))
    counted = dict(norm_layers(watched.models[0]))
    assert [int(layer.num_batches_tracked) for layer in counted.values()] == [4] * len(counted)
    assert len(labels) == len(images) == 32
    assert weights(watched.models[0])


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.accumulate=3"], r"trainer.accumulate=3: must divide data.batch_size=64\nall parts"),
        (["trainer.accumulate=0"], r"trainer.accumulate=0: must be at least 1"),
        (
            ["norm=ghost", "trainer.accumulate=4"],
            r"norm.size=32: must be at most data.batch_size=16, the part of trainer.accumulate=4\n",
        ),
        (
            ["model=mlp", "trainer.accumulate=64"],
            r"trainer.accumulate=64, data.batch_size=64: norm=batch has one value a channel",
        ),
    ],
)
def test_parts_that_make_no_sense_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.preflight(compose.jobs(["trainer.device=cpu", *overrides], multirun=False))


def test_workers_refuse_parts_that_are_not_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Workers(0, 2, 0, 2)
    config = config_of("trainer.distributed=true", "trainer.accumulate=8", "data.batch_size=72")
    monkeypatch.setattr("bnlab.experiment.config.from_environment", lambda: two)
    with pytest.raises(ConfigError, match=r"must divide the part of each of 2 workers\nset data.batch_size to a mult"):
        check_workers(config, two)
    check_workers(replace(config, data=replace(config.data, batch_size=64)), two)
    # the last batch of 19 samples is 10 and 9 of them, in parts of 8: 8 and 2, or all 9
    keys = ["norm=sync", "data.batch_size=32", "trainer.accumulate=2", "data.train_size=51"]
    with pytest.raises(ConfigError, match=r"the last batch, of 19 samples, .* norm=sync waits for all of them\nset da"):
        run._check_model(config_of(*keys), two)
    for more in (["norm=batch"], ["data.last_batch=drop"]):
        run._check_model(config_of(*keys, *more), two)
    with pytest.raises(ConfigError, match=r"trainer.accumulate=2: cannot be timed with --workers\nomit it"):
        read_sections(["trainer.accumulate=2"], 2, [0.0, 5.0])
