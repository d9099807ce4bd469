"""The paired comparison of steps: against hand-computed figures and the training loop, and as its user meets it.

No test looks at how long anything took.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from helpers_bench import CPU, SMALL, Watched, ignore, sections, table, weights
from helpers_cli import bnlab
from helpers_runs import make_run
from torch import Tensor

from bnlab.bench import pairing
from bnlab.bench import stepper as stepping
from bnlab.bench.arms import BenchSection, contest, read, set_threads
from bnlab.bench.engine import FEWEST_BLOCKS, BenchConfig, Contest, ContestTime, Stepper, measure
from bnlab.bench.layer_times import SHAPES, layer_contest, uncompared
from bnlab.bench.pairing import LOOKS, Blocks, Figures, Turns, in_turn, median_of
from bnlab.bench.scaling import levels
from bnlab.bench.stepper import first_batches
from bnlab.bench.traffic import Traffic, traffic_of
from bnlab.cli.bench import bench
from bnlab.cli.bench_record import record
from bnlab.compare.comparison import compare
from bnlab.compare.looks import critical_level
from bnlab.errors import ConfigError, IncompatibleError
from bnlab.experiment.config import identity
from bnlab.experiment.setup import bundle_of, device_batches, model_of, to_device
from bnlab.interval import Interval
from bnlab.record.read import read_runs
from bnlab.training import loop
from bnlab.training.trainer import forward_of, loss_function


def labels(section: BenchSection) -> list[str]:
    return [arm.label for arm in section.arms]


# ---------------------------------------------------------------- pairing


def test_each_round_calls_every_contender_once_in_an_order_of_its_own() -> None:
    called: list[str] = []

    def contender(name: str) -> Figures:
        called.append(name)
        return (float(len(called)),)

    turns_of = in_turn({name: partial(contender, name) for name in "abcd"}, "a")
    *_, turns = itertools.islice(turns_of, 40)
    rounds = ["".join(called[i : i + 4]) for i in range(0, len(called), 4)]
    assert len(rounds) == 40 + pairing.WARMUP_ROUNDS
    assert {"".join(sorted(one)) for one in rounds} == {"abcd"}
    assert len(set(rounds)) > 12  # of 24
    # what the warm-up gave is not among the figures
    assert turns.rounds == 40
    assert min(figures[0] for name in "abcd" for figures in turns.figures[name]) == 4 * pairing.WARMUP_ROUNDS + 1


def test_ratio_is_the_median_of_the_rounds_with_its_bootstrap_interval() -> None:
    draw = np.random.default_rng(3)
    mine, theirs = draw.uniform(1, 2, 41), draw.uniform(1, 2, 41)
    turns = Turns("a", {"a": [(x, 0.0) for x in theirs], "b": [(x, 0.0) for x in mine]})
    ratio = turns.ratio("b")
    ratios = np.sort(mine / theirs)
    assert ratio.value == ratios[20]
    # every resample apart, in plain loops
    chosen = np.random.default_rng(0).integers(0, 41, (2000, 41))
    medians = sorted(sorted((mine / theirs)[rows])[20] for rows in chosen)
    assert (ratio.low, ratio.high) == pytest.approx(tuple(np.percentile(medians, (2.5, 97.5))), abs=1e-12)
    assert ratio.relative_half == pytest.approx((ratio.high - ratio.low) / 2 / ratio.value)
    # and near the binomial interval, x(14) to x(28), which covers the median in 97 % of cases
    assert ratios[11] <= ratio.low <= ratios[16]
    assert ratios[24] <= ratio.high <= ratios[29]


def test_interval_covers_the_median_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    hits = sum(not median_of(list(draw.lognormal(0, 0.2, 30))).excludes(1) for _ in range(200))
    assert 180 <= hits <= 199


def test_blocks_are_the_sample_of_a_ratio() -> None:
    draw = np.random.default_rng(5)
    lengths = {name: draw.lognormal(0, 0.1, (8, pairing.WARMUP_ROUNDS + 5)) for name in "ab"}
    blocks = Blocks("a")
    for k in range(8):
        contenders = {name: partial(next, iter([(x,) for x in lengths[name][k]])) for name in "ab"}
        assert len(list(blocks.block(contenders, 5))) == 5
    assert (blocks.count, blocks.rounds) == (8, 40)
    counted = {name: rows[:, pairing.WARMUP_ROUNDS :] for name, rows in lengths.items()}
    assert [figures[0] for figures in blocks.figures["b"]] == list(counted["b"].ravel())
    logs = np.log(np.median(counted["b"] / counted["a"], axis=1))
    ratio = blocks.ratio("b")
    level = critical_level(LOOKS, 0.05)
    half = scipy.stats.t(7).ppf(1 - level / 2) * logs.std(ddof=1) / math.sqrt(8)
    assert (ratio.value, ratio.n) == (pytest.approx(math.exp(logs.mean())), 8)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(logs.mean() - half), math.exp(logs.mean() + half)))


def test_equal_contenders_are_seldom_told_apart_however_often_one_looks() -> None:
    """Where a contender lies costs it a percent until it is made anew: rounds cannot tell that from a difference."""
    draw, families = np.random.default_rng(0), 200
    excluded = by_rounds = 0
    for _ in range(families):
        blocks, kept = Blocks("a"), []
        for count in range(1, LOOKS[3] + 1):
            places = {name: float(np.exp(draw.normal(0, 0.014))) for name in "ab"}
            lengths = {name: places[name] * draw.lognormal(0, 0.02, pairing.WARMUP_ROUNDS + 3) for name in "ab"}
            contenders = {name: partial(next, iter([(float(x),) for x in lengths[name]])) for name in "ab"}
            list(blocks.block(contenders, 3))
            kept += blocks.by_block["b"][-1:]
            if count in LOOKS and blocks.ratio("b").relative_half <= 0.012:
                break
        excluded += blocks.ratio("b").excludes(1)
        first = places["b"] / places["a"] * draw.lognormal(0, 0.03, 200)  # 200 rounds of one making
        by_rounds += median_of(list(first)).excludes(1)
    assert excluded <= 0.05 * families
    assert by_rounds > 0.3 * families


# ---------------------------------------------------------------- the engine, on steps of a known length


LITTLE = Traffic(100, 10)


def steady(length: float, seen: list[str], name: str, traffic: Traffic = LITTLE) -> Stepper:
    def step() -> Figures:
        seen.append(name)
        return length, length / 2, length / 4, length / 4

    def count() -> Traffic:
        seen.append(f"{name} counted")
        return traffic

    return Stepper(step, count, 7, 4096)


def test_a_contest_stops_at_the_precision_and_says_so() -> None:
    seen: list[str] = []
    steppers = {"none": lambda: steady(2.0, seen, "n"), "batch": lambda: steady(3.0, seen, "b", Traffic(10**9, 20))}
    told: list[int] = []
    found = measure(
        Contest("", (), 64, CPU, steppers), BenchConfig(), 60.0, lambda turns, left: told.append(turns.rounds)
    )
    rounds = 20 * LOOKS[0]
    assert (found.stopped_by, found.blocks, found.rounds) == ("precision", LOOKS[0], rounds)
    assert told == list(range(1, rounds + 1))
    none, batch = found.arms
    assert (none.ratio.value, batch.ratio.value, found.control.value) == (1.0, 1.5, 1.0)
    assert (batch.step_ms, batch.forward_ms, batch.backward_ms, batch.optimizer_ms) == (3.0, 1.5, 0.75, 0.75)
    assert (batch.images_per_second, batch.num_parameters) == (64 / 3e-3, 7)
    assert none.floor == 1
    assert batch.floor == pytest.approx(1 + (10**9 - 100) / found.bandwidth / 2e-3)
    # both copies of the baseline are treated alike: one step before the counting, which takes none here
    each = LOOKS[0] * (pairing.WARMUP_ROUNDS + 20) + 1
    assert (seen.count("n"), seen.count("b"), seen.count("n counted")) == (2 * each, each, 2)


def test_a_contest_stops_at_the_budget_but_not_before_there_is_an_interval() -> None:
    seen: list[str] = []
    lengths = iter(x for _ in range(10_000) for x in (1.0, 9.0, 4.0))

    def step() -> Figures:
        length = next(lengths)
        return length, length, 0.0, 0.0

    wild = Stepper(step, lambda: Traffic(0, 0), 0, 4096)
    contestants = {"none": lambda: steady(2.0, seen, "n"), "batch": lambda: wild}
    found = measure(Contest("", (), 1, CPU, contestants), BenchConfig(), 1e-9, ignore)
    assert (found.stopped_by, found.rounds) == ("budget", 20 * FEWEST_BLOCKS)


# ---------------------------------------------------------------- traffic

FLOAT = 4


@pytest.mark.parametrize(
    ("step", "moved", "peak"),
    [
        (lambda x: x + x, 3, 1),
        (lambda x: x.add_(1), 2, 0),
        (lambda x: x.zero_(), 1, 0),
        (lambda x: x.copy_(x.clone()), 4, 1),
        (lambda x: x.view(-1).unsqueeze(0).t().detach(), 0, 0),
        (lambda x: torch.mul(x, x, out=torch.empty_like(x)), 3, 1),
        (lambda x: x.exp().exp().exp(), 6, 2),  # the first is freed when the third is made
    ],
)
def test_traffic_of_single_operations(step: Callable[[Tensor], Tensor], moved: int, peak: int) -> None:
    x = torch.ones(100, 10)
    assert traffic_of(lambda: step(x)) == Traffic(moved * x.nbytes, peak * x.nbytes)


def test_traffic_of_a_layer_with_norm_and_relu_is_what_one_counts_by_hand() -> None:
    n, i, c = 50, 10, 20
    x, weight = torch.randn(n, i), torch.randn(c, i, requires_grad=True)
    gamma, beta = torch.ones(c, requires_grad=True), torch.zeros(c, requires_grad=True)
    seed = torch.ones(n, c)

    def step() -> None:
        h = F.linear(x, weight)
        y = F.relu(F.layer_norm(h, (c,), gamma, beta))
        y.backward(seed)
        for parameter in (weight, gamma, beta):
            parameter.grad = None

    wide, moments = n * c, 2 * n
    forward = [
        n * i + c * i + wide,  # h = x W'
        wide + 2 * c + wide + moments,  # layer norm: reads h, gamma, beta; writes its output, mean and 1/std
        2 * wide,  # relu
    ]
    backward = [
        3 * wide,  # relu: gradient and output -> gradient
        2 * wide + moments + 2 * c + wide + 2 * c,  # layer norm: gradient, h, moments, gamma, beta -> three gradients
        wide + n * i + c * i,  # W's gradient
    ]
    traffic = traffic_of(step)
    assert traffic.moved == FLOAT * (sum(forward) + sum(backward))
    # while the layer norm goes back: h, the moments and relu's output kept for backward or by name, two gradients
    assert traffic.peak == FLOAT * (4 * wide + moments + 2 * c)


def test_traffic_of_a_convolution() -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    assert traffic_of(lambda: F.conv2d(x, weight, padding=1)) == Traffic(
        FLOAT * (2 * 3 * 64 + 5 * 27 + 2 * 5 * 64), FLOAT * 2 * 5 * 64
    )


def test_weights_and_what_the_optimizer_keeps_are_not_in_the_peak() -> None:
    weights = [torch.ones(1000, requires_grad=True)]
    weights[0].grad = torch.ones(1000)
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, foreach=False)
    optimizer.step()
    # buffer *= mu; buffer += g; w -= lr buffer
    assert traffic_of(optimizer.step) == Traffic(FLOAT * 1000 * (2 + 3 + 3), 0)


# ---------------------------------------------------------------- arms


def test_lists_make_sections_of_arms_with_the_baseline_first() -> None:
    found = sections("norm=layer,batch,none", "data.batch_size=16,32")
    assert [(s.title, labels(s)) for s in found] == [
        ("data.batch_size=16", ["none", "layer", "batch"]),
        ("data.batch_size=32", ["none", "layer", "batch"]),
    ]
    assert [s.arms[0].config.data.batch_size for s in found] == [16, 32]
    (without,) = sections("norm=layer,batch")
    assert (without.title, labels(without)) == ("", ["layer", "batch"])


def test_the_keys_of_one_strategy_are_its_own() -> None:
    (found,) = sections("norm=none,ghost,batch", "norm.size=8,16", "norm.momentum=0.2")
    assert labels(found) == ["none", "ghost size=8", "ghost size=16", "batch"]
    assert [arm.config.norm.name for arm in found.arms] == ["none", "ghost", "ghost", "batch"]
    assert [arm.tree["norm"].get("momentum") for arm in found.arms] == [None, 0.2, 0.2, 0.2]


def test_equal_arms_are_merged_and_no_two_labels_are_equal() -> None:
    _, (found,), notes = read([*SMALL, "norm=none,batch", "seed=0,1"])
    assert labels(found) == ["none", "batch"]
    assert len(notes) == 2
    assert all("one seed" in note for note in notes)
    (prefixed,) = sections("norm=none,batch", "++norm.momentum=0.1,0.2")
    assert labels(prefixed) == ["none", "batch momentum=0.1", "batch momentum=0.2"]


def test_what_does_not_fit_is_left_out_by_name() -> None:
    _, (found,), notes = read([*SMALL, "model=mlp", "norm=none,batch,instance,ghost", "norm.size=16,64"])
    assert labels(found) == ["none", "batch", "ghost"]  # a ghost batch of 64 is larger than the batch
    assert [note.split(":")[:2] for note in notes] == [
        ["left out", " norm=instance"],
        ["left out", " norm=ghost norm.size=64"],
    ]


def test_a_pattern_takes_all_strategies_that_fit() -> None:
    _, (found,), notes = read([*SMALL, "model=mlp", "norm=glob(*)"])
    assert labels(found)[0] == "none"
    assert {"batch", "layer", "ghost", "rms"} <= set(labels(found))
    assert any("instance" in note for note in notes)


def test_a_single_arm_gets_a_baseline_or_is_said_to_have_none() -> None:
    _, (found,), (note,) = read([*SMALL, "norm=ghost", "norm.size=8"])
    assert labels(found) == ["none", "ghost"]
    assert "added" in note
    with pytest.raises(ConfigError, match="norm=none: there is nothing to compare it with"):
        read([*SMALL, "norm=none"])
    _, (cnn,), (note, *_) = read([*SMALL, "model=cnn,mlp", "norm=none,instance"])
    assert (cnn.title, labels(cnn)) == ("model=cnn", ["none", "instance"])
    assert "norm=instance" in note


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["bench.secnds=3"], "did you mean bench.seconds"),
        (["bench.seconds=0"], "above 0"),
        (["bench.seconds=long"], "must be a number"),
        (["bench.precision=-1"], "above 0"),
        (["bench.rounds=1"], "at least 2"),
        (["bench.rounds=2,3"], "cannot be set here"),
        (["norm=bach"], "did you mean batch"),
        (["norm.siez=3"], "norm.siez"),
        (["norm=batch", "norm.size=8"], r"^norm.size: the chosen norm has no such key\nit is a key of: ghost$"),
        (["optim=adamw", "optim.nesterov=true"], "chosen optim has no such key\nit is a key of: sgd$"),
        (["norm=batch", "norm.siz=8"], "norm.siz: no such key; did you mean norm.size"),
        (["bench.graph=3"], "must be true or false"),
        (["norm=none,ghost", "norm.size=0"], "norm.size=0: must be at least"),
        (["model=mlp", "norm=instance"], "nothing to measure"),
    ],
)
def test_wrong_command_lines_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as found:
        read([*SMALL, *overrides])
    assert found.value.exit_code == 2


def test_limits_are_read() -> None:
    assert read([*SMALL, "bench.seconds=7", "bench.precision=0.1", "bench.rounds=30"])[0] == BenchConfig(
        seconds=7.0, precision=0.1, rounds=30
    )


def test_threads_go_section_by_section() -> None:
    before = torch.get_num_threads()
    one, default = contest(sections("norm=none,batch", "trainer.threads=1")[0]), None
    try:
        assert "cpu, 1 thread" in one.setting
        set_threads(2)
        default = contest(sections("norm=none,batch")[0])
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    assert f"cpu, {before} thread{'s' if before > 1 else ''}" in default.setting


# ---------------------------------------------------------------- the step


def equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def by_training(section: BenchSection, steps: int) -> dict[str, Tensor]:
    """Do the same steps with `loop.Training`, at the learning rate of its first step."""
    config = section.arms[1].config
    bundle = bundle_of(config.data)
    model = to_device(model_of(config, bundle), config, CPU)
    optimizer = config.optim.make(model)
    rate = config.schedule.rate_of(config.optim.lr, stepping.TOTAL_STEPS)(0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    training_set = device_batches(config, bundle, bundle.train, CPU, training=True)
    forward, loss_of = forward_of(model, config.trainer, CPU), loss_function(config.trainer)
    model.train()
    for step, (images, targets) in zip(range(steps), training_set.epoch(0), strict=False):
        loop.train_step(forward, optimizer, loss_of, images, targets, step)
    return weights(model)


@pytest.mark.parametrize("norm", ["batch", "ghost", "layer"])
def test_steps_are_those_of_the_training_loop_bit_for_bit(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (section,) = sections(f"norm=none,{norm}", *(["norm.size=8"] if norm == "ghost" else []))
    watched = Watched(monkeypatch)
    one = contest(section).make[norm]()
    for _ in range(5):
        assert len(one.step()) == 5
    assert equal(weights(watched.models[0]), by_training(section, 5))


def test_the_step_is_train_step_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stepping.train_step is loop.train_step
    seen: list[int] = []

    def spy(*arguments: Any) -> Tensor:
        seen.append(arguments[5])
        return loop.train_step(*arguments)

    monkeypatch.setattr(stepping, "train_step", spy)
    (section,) = sections("norm=none,batch")
    found = measure(contest(section), BenchConfig(precision=math.inf, rounds=6), 60.0, ignore)
    assert found.stopped_by == "precision"
    each = [*range(2 + pairing.WARMUP_ROUNDS + 6), *(LOOKS[0] - 1) * [*range(pairing.WARMUP_ROUNDS + 6)]]
    assert sorted(seen) == sorted(3 * each)  # none, its second copy, and batch


def test_two_copies_of_the_baseline_end_with_equal_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    (section,) = sections("norm=batch,layer")
    measure(contest(section), BenchConfig(precision=math.inf, rounds=6), 60.0, ignore)
    assert len(watched.models) == 3 * LOOKS[0]
    batch, layer, copy = map(weights, watched.models[:3])
    assert equal(batch, copy)
    assert not equal(batch, layer)
    for start in range(3, len(watched.models), 3):
        block = watched.models[start : start + 3]
        assert sum(equal(weights(a), weights(b)) for a, b in itertools.combinations(block, 2)) == 1


def test_statistics_of_the_training_set_are_refreshed_inside_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[bool] = []
    counting = False
    refresh = stepping.Refresh.before_step

    def spy(self: Any, step: int) -> None:
        inside.append(counting)
        refresh(self, step)

    monkeypatch.setattr(stepping.Refresh, "before_step", spy)
    (section,) = sections("norm=none,population")
    one = contest(section).make["population"]()
    assert inside == []
    counting = True
    with_refresh = [one.step() and one.traffic().moved for _ in range(2)]
    assert inside == [True] * 4
    (rare,) = sections("norm=none,population", "norm.every=1000")
    seldom = contest(rare).make["population"]()
    seldom.step()
    assert with_refresh[0] > seldom.traffic().moved  # the refresh is in what the step moves


def test_short_last_batches_are_not_among_the_steps() -> None:
    (section,) = sections("norm=none,batch", "data.train_size=100")
    config = section.arms[0].config
    bundle = bundle_of(config.data)
    assert [len(y) for _, y in first_batches(device_batches(config, bundle, bundle.train, CPU, training=True))] == [
        32
    ] * 3
    whole = sections("norm=none,batch", "data.train_size=100", "data.batch_size=128")[0]
    assert contest(whole).batch_size == 100


def test_weights_that_run_away_do_not_stop_a_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    (section,) = sections("norm=none,batch,rms", "optim.lr=1e38", "schedule=constant")
    found = measure(contest(section), BenchConfig(precision=math.inf, rounds=6), 60.0, ignore)
    assert not all(value.isfinite().all() for value in watched.models[0].state_dict().values())
    assert all(math.isfinite(arm.step_ms) and arm.step_ms > 0 for arm in found.arms)
    assert found.rounds >= 6


def test_models_are_free_after_their_contest(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    watched = Watched(monkeypatch)
    (section,) = sections("norm=none,batch")
    found = measure(contest(section), BenchConfig(precision=math.inf, rounds=6), 60.0, ignore)
    alive = [weakref.ref(model) for model in watched.models]
    watched.models.clear()
    gc.collect()
    assert [model() for model in alive] == [None] * 3 * LOOKS[0]
    assert found.rounds >= 6


# ---------------------------------------------------------------- layers and sizes


def test_layers_by_shape() -> None:
    (section,) = sections("norm=none,layer,batch,instance,rms")
    quick = BenchConfig(precision=math.inf, rounds=6)
    for shape in ((4, 8, 6, 6), (4, 8)):
        ready = layer_contest(section, shape)
        assert ready is not None
        fitting = ["batch", "layer", "instance", "rms"] if len(shape) == 4 else ["batch", "layer", "rms"]
        assert (list(ready.make), ready.batch_size) == (fitting, 4)
        assert [note for note in ready.left_out if "instance" in note] == list(ready.left_out)
        assert len(ready.left_out) == 4 - len(fitting)
        found = measure(ready, quick, 60.0, ignore)
        assert [arm.num_parameters for arm in found.arms[:1]] == [16]
        assert found.arms[0].optimizer_ms == 0
    assert {len(shape) for shape in SHAPES} == {2, 4}
    with pytest.raises(IncompatibleError, match="no layer"):
        layer_contest(read([*SMALL, "norm=none"], layers=True)[1][0], (4, 8))
    (odd,) = sections("norm=none,group,batch", "norm.groups=4", "model.widths=[4,8]")
    ready = layer_contest(odd, (4, 6, 5, 5))
    assert ready is not None
    assert (list(ready.make), len(ready.left_out)) == (["batch"], 1)


def test_of_layers_none_is_left_out_by_name_and_is_no_baseline() -> None:
    lone = "norm=batch alone has nothing to be compared with but its second copy; name others, such as norm=batch,layer"
    for norms, kept, said in (
        ([], ["batch", "ghost", "instance", "layer"], []),  # no groups fit 4 channels
        (["norm=batch,layer"], ["batch", "layer"], []),
        (["norm=none,batch,layer"], ["none", "batch", "layer"], ["norm=none is left out: it has no layer"]),
        (["norm=none,batch"], ["none", "batch"], ["norm=none is left out: it has no layer", lone]),
        (["norm=batch"], ["batch"], [lone]),
    ):
        _, (section,), notes = read([*SMALL, *norms], layers=True)
        assert (labels(section), [note for note in notes if "group" not in note]) == (kept, [])
        assert list(uncompared(section)) == said


def test_scaling_by_width() -> None:
    (section,) = sections("norm=none,batch")
    found = levels(section, "width")
    assert [(level.label, level.size) for level in found] == [("2-4", 4), ("4-8", 8), ("8-16", 16), ("16-32", 32)]
    assert [level.section.arms[1].config.model.widths for level in found] == [(2, 4), (4, 8), (8, 16), (16, 32)]  # type: ignore[attr-defined]
    assert section.arms[0].tree["model"]["widths"] == [4, 8]  # the original is left alone
    assert found[0].section.title == "width 2-4"
    deep = read(["data=digits", "norm=none,batch", "model=resnet", "model.depth=8", "model.width=4"])[1][0]
    assert [level.label for level in levels(deep, "width")] == ["2", "4", "8", "16"]


def test_scaling_by_image_is_on_random_images() -> None:
    (section,) = sections("norm=none,batch")
    found = levels(section, "image")
    sides = [8, 16, 32, 64]
    assert [level.size for level in found] == sides
    pictures = [level.section.images for level in found]
    assert [images.image_shape for images in pictures if images] == [(1, side, side) for side in sides]
    assert len({images.fingerprint for images in pictures if images}) == 4
    assert [contest(level.section).setting[0] for level in found[:1]] == ["random images 8 x 8"]


def test_scaling_by_batch_leaves_out_what_does_not_fit() -> None:
    (section,) = sections("norm=none,ghost,batch", "norm.size=32", "data.train_size=300")
    small, middle, large = levels(section, "batch")
    assert (small.label, middle.label, large.label) == ("16", "64", "256")  # 1,024 are more than there are
    assert labels(small.section) == ["none", "batch"]
    assert [note.split(":")[1] for note in small.section.left_out] == [" ghost"]
    assert labels(middle.section) == ["none", "ghost", "batch"]
    assert contest(large.section).batch_size == 256
    with pytest.raises(ConfigError, match="--scale batch"):
        levels(sections("norm=none,batch", "data.train_size=10")[0], "batch")


# ---------------------------------------------------------------- record and compare


def measured(*overrides: str) -> tuple[list[BenchSection], list[ContestTime]]:
    found = sections(*overrides)
    return found, [measure(contest(s), BenchConfig(precision=math.inf, rounds=6), 60.0, ignore) for s in found]


def test_a_bench_is_read_by_compare(tmp_path: Path) -> None:
    found, times = measured("norm=batch,ghost", "norm.size=8,16")
    folder = record(found, times, tmp_path)
    rows = list(csv.DictReader(io.StringIO((folder / "bench.csv").read_text())))
    assert [row["arm"] for row in rows] == ["batch", "ghost size=8", "ghost size=16"]
    empty = {"contest", "host_ms", "launch_bound"}  # one contest, and on CPU the host does the work
    assert all({key for key, value in row.items() if value == ""} == empty for row in rows)
    runs, skipped = read_runs([folder])
    assert (len(runs), skipped) == (3, [])
    assert all(run.is_bench for run in runs)
    fingerprint = bundle_of(found[0].arms[0].config.data).fingerprint
    trainings = {identity(arm.tree, fingerprint) for arm in found[0].arms}
    again = read_runs([record(found, times, tmp_path)])[0]
    assert len({run.identity for run in (*runs, *again)} | trainings) == 9, "each bench has an identity of its own"
    (section,) = compare([folder]).sections
    assert (section.main, section.is_bench) == ("step_ratio", True)
    assert [row.label for row in section.rows] == ["norm=batch", "norm=ghost size=8", "norm=ghost size=16"]
    assert [row.is_baseline for row in section.rows] == [True, False, False]
    assert section.rows[0].metrics["step_ratio"].value == 1.0
    mine, theirs = section.rows[1].metrics["step_ratio"], times[0].arms[1].ratio
    assert (mine.value, mine.low, mine.high, mine.n) == (theirs.value, theirs.low, theirs.high, 1)
    assert set(section.rows[1].metrics) == {"step_ratio", "step_ms", "images_per_second"}
    assert "seed" not in " ".join(section.notes)


def test_the_baseline_is_that_of_the_bench_and_not_the_usual_one(tmp_path: Path) -> None:
    found, times = measured("norm=layer,batch")
    (section,) = compare([record(found, times, tmp_path)]).sections
    assert {row.label: row.is_baseline for row in section.rows} == {"batch": False, "layer": True}
    assert "over that of layer" in section.notes[0]


def test_of_two_benches_the_better_measured_one_counts(tmp_path: Path) -> None:
    found, (times,) = measured("norm=none,batch")
    half_widths = (0.01, 0.5)
    for half in half_widths:
        ratio = Interval(1.2 + half, 1.2, 1.2 + 2 * half, 9, kind="median")
        arms = (times.arms[0], replace(times.arms[1], ratio=ratio))
        control = Interval(1.0, 1 - half, 1 + half, 9, kind="median")
        record(found, [replace(times, arms=arms, control=control)], tmp_path)
    (section,) = compare([tmp_path]).sections
    assert section.rows[1].metrics["step_ratio"].value == pytest.approx(1.21)
    assert any(
        note == "2 runs left out: same configuration and seed as a better measured one." for note in section.notes
    )
    (copy,) = [note for note in section.notes if note.startswith("A second copy")]
    assert copy == (
        "A second copy of the baseline took 0.990 to 1.010 of it: take no difference finer than 1 % for real."
    )


@pytest.mark.parametrize(("low", "high", "said"), [(0.626, 2.188, "119"), (0.998, 1.004, "0.4"), (1.01, 1.03, "3")])
def test_the_finest_difference_is_that_of_the_second_copy(
    low: float, high: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = replace(imagined(["none", "batch"]), control=Interval((low + high) / 2, low, high, 9, kind="median"))
    assert f"Differences finer than {said} % mean nothing." in " ".join(table(found, 200, monkeypatch))


def test_runs_and_benches_are_sections_of_their_own(tmp_path: Path) -> None:
    found, times = measured("norm=none,batch")
    record(found, times, tmp_path)
    for seed in range(2):
        make_run(tmp_path / f"r{seed}", norm="batch", seed=seed, data="digits")
    training, bench = compare([tmp_path]).sections
    assert (training.is_bench, training.main, [row.label for row in training.rows]) == (
        False,
        "test_accuracy",
        ["batch"],
    )
    assert (bench.is_bench, bench.main, [row.label for row in bench.rows]) == (True, "step_ratio", ["none", "batch"])


def test_sizes_of_random_images_stay_apart(tmp_path: Path) -> None:
    found = [level.section for level in levels(sections("norm=none,batch")[0], "image")[:2]]
    times = [measure(contest(s), BenchConfig(precision=math.inf, rounds=6), 60.0, ignore) for s in found]
    compared = compare([record(found, times, tmp_path)]).sections
    assert [section.settings["data.name"] for section in compared] == ["random images 16 x 16", "random images 8 x 8"]
    assert [len(section.rows) for section in compared] == [2, 2]


def test_nothing_measured_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="nothing to measure"):
        record([], [], tmp_path)


# ---------------------------------------------------------------- the table


def imagined(names: Sequence[str]) -> ContestTime:
    seen: list[str] = []
    steppers = {name: partial(steady, 2.0 + i, seen, name) for i, name in enumerate(names)}
    return measure(Contest("", ("digits",), 64, CPU, steppers), BenchConfig(), 60.0, ignore)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_table_keeps_ratio_and_floor(width: int, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["none", *(f"ghost size={size} momentum=0.01" for size in (8, 16, 32)), "layer", "group", "rms", "frn"]
    lines = table(imagined(names), width, monkeypatch, encoding)
    assert max(map(len, lines)) <= width
    head = next(line for line in lines if line.startswith("arm"))
    assert "vs none" in head
    assert "floor" in head
    row = next(line for line in lines if line.startswith("ghost size=16"))
    assert f"2.000 (2.000{'-' if encoding == 'ascii' else '–'}2.000)" in row
    assert [line.split()[0] for line in lines[3 : 3 + 2 + len(names)]][-1] == "frn"


def test_labels_too_long_for_a_table_become_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    long = f"ghost size=16 {'momentum=0.0123456789 ' * 3}".strip()
    lines = table(imagined(["none", long]), 80, monkeypatch)
    assert f"arm={long}" in " ".join(lines).replace("  ", " ")
    assert any(line.split() == ["vs", "none", "1.500", "(1.500–1.500)"] for line in lines)
    narrow = table(imagined(["none", "batch"]), 40, monkeypatch)
    assert max(map(len, narrow)) <= 40
    assert "arm=batch" in narrow


# ---------------------------------------------------------------- the command

QUICK = [*SMALL, "bench.seconds=2", "bench.precision=0.9", "bench.rounds=6"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    place = tmp_path_factory.mktemp("bench")
    return place, bnlab("bench", "norm=none,batch,layer", *QUICK, cwd=place, COLUMNS="80")


def test_a_bench_prints_a_table_and_leaves_a_record(done: tuple[Path, Any]) -> None:
    place, process = done
    assert process.returncode == 0, process.stderr
    answer, _, table = process.stdout.partition("\n\n")
    assert re.match(r"Beside none, a step takes [\d.]+ |No difference in step time from none is seen ", answer)
    lines = table.splitlines()
    assert lines[0].startswith("one training step · digits · cnn, batch 32 · cpu")
    assert [line.split()[0] for line in lines if line[:5].strip() in ("none", "batch", "layer")][:3] == [
        "none",
        "batch",
        "layer",
    ]
    assert max(map(len, lines)) <= 80
    assert "A second copy of none took" in process.stdout
    (folder,) = place.glob("runs/2*")
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "bench.csv", "rounds.csv"]
    assert f"recorded in runs/{folder.name}" in process.stderr


def test_compare_and_show_read_the_record(done: tuple[Path, Any]) -> None:
    place, _ = done
    (folder,) = place.glob("runs/2*")
    compared = bnlab("compare", str(folder), cwd=place, COLUMNS="80")
    assert compared.returncode == 0, compared.stderr
    # which of the two it says of which arm is the machine's matter
    answer = compared.stdout.partition("\n\n")[0]
    assert re.match(
        r"Beside none, a step takes [\d.]+ .*times as long with \w+|No difference in step time from none is seen ",
        answer,
    )
    assert "batch" in answer
    assert "layer" in answer
    assert "\nbench · digits" in compared.stdout
    assert max(map(len, compared.stdout.splitlines())) <= 80
    (none,) = (line for line in compared.stdout.splitlines() if line.startswith("none "))
    assert none.split()[2] == "baseline"
    assert "n=1" not in compared.stdout
    assert "finite value" not in compared.stdout
    shown = bnlab("show", str(folder / "1"), cwd=place, COLUMNS="80", PYTHONIOENCODING="ascii")
    assert shown.returncode == 0, shown.stderr
    assert "times the step of none" in " ".join(shown.stdout.split())
    assert "steps.csv" not in shown.stdout
    everything = bnlab("compare", str(folder), "--format", "json", cwd=place)
    assert json.loads(everything.stdout)["main"] == "step_ratio"


@pytest.mark.parametrize("form", ["json", "csv", "plain", "md"])
def test_formats(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bench(["norm=none,batch", *QUICK], format=form)
    shown = capsys.readouterr().out
    if form == "json":
        rows = json.loads(shown)["rows"]
        assert [(row["arm"], row["baseline"]) for row in rows] == [("none", "none"), ("batch", "none")]
        assert rows[0]["ratio"] == 1
    elif form == "csv":
        assert [row["arm"] for row in csv.DictReader(io.StringIO(shown))] == ["none", "batch"]
    else:
        assert all(word in shown for word in ("moved", "ratio", "batch"))


def test_sizes_end_with_a_table_of_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    bench(["norm=none,batch,ghost", *QUICK, "data.train_size=100"], scale="batch")
    shown = capsys.readouterr().out
    last = shown.partition("step of each strategy over that of none, by batch")[2].splitlines()
    assert [line.split()[0] for line in last if line.startswith(("batch ", "ghost "))] == ["batch", "ghost"]
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.slow
def test_layers_on_the_command_line(tmp_path: Path) -> None:
    process = bnlab(
        *("bench", "--layers", "norm=batch,layer,instance", *QUICK),
        cwd=tmp_path,
        COLUMNS="120",
        NO_COLOR="1",
        PYTHONIOENCODING="ascii",
    )
    assert process.returncode == 0, process.stderr
    assert [line.split("|")[0].strip() for line in process.stdout.splitlines() if line.startswith("a layer on")] == [
        f"a layer on {' x '.join(map(str, shape))}" for shape in SHAPES
    ]
    assert "left out: instance" in process.stdout
    assert process.stdout.isascii()
    assert "\x1b" not in process.stdout


def test_a_wrong_command_line_ends_with_2(tmp_path: Path) -> None:
    process = bnlab("bench", "bench.secnds=3", "data=digits", cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("bench.secnds=3: cannot be set here; did you mean bench.seconds?")
    assert not (tmp_path / "runs").exists()
