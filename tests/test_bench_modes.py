"""A bench over training sets, of evaluation and under the profiler; its rounds in the record, and claims on its blocks.

No test looks at how long anything took.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from helpers_bench import CPU, SMALL, ignore, sections
from torch import nn

from bnlab.bench import inference, profiling
from bnlab.bench import stepper as stepping
from bnlab.bench.arms import contest
from bnlab.bench.engine import CONTROL, BenchConfig, ContestTime, by_block, measure
from bnlab.bench.pairing import LOOKS, over_blocks
from bnlab.bench.scaling import growth_rows, growths, levels
from bnlab.claims.decide import decide
from bnlab.claims.evaluate import evidence_of
from bnlab.claims.evidence import Undecidable
from bnlab.claims.language import parse_sentence
from bnlab.claims.rule import parse_rule
from bnlab.cli.bench import bench
from bnlab.cli.bench_record import record
from bnlab.cli.claim import _measure
from bnlab.compare.comparison import compare
from bnlab.compare.looks import critical_level
from bnlab.data.batches import batch_sizes
from bnlab.errors import ConfigError
from bnlab.models.model import norm_layers
from bnlab.record.read import Run, read_runs
from bnlab.report.claim_figures import figures_of
from bnlab.training import loop

FEW = BenchConfig(precision=math.inf, rounds=4)
QUICK = [*SMALL, "trainer.threads=1", "bench.precision=99", "bench.rounds=4"]


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


# ---------------------------------------------------------------- training sets


def by_size() -> tuple[Any, ContestTime]:
    (section,) = sections("norm=none,population", "data.train_size=1000", "model=mlp", "data.batch_size=100")
    (level,) = levels(section, "data")
    return level.section, measure(contest(level.section), FEW, 60.0, ignore)


def test_all_sizes_of_the_training_set_are_one_contest() -> None:
    section, times = by_size()
    sizes = [128, 256, 512]
    assert [arm.config.data.train_size for arm in section.arms] == [size for size in sizes for _ in range(2)]
    assert [arm.label for arm in times.arms] == [f"{norm} {n}" for n in sizes for norm in ("none", "population")]
    assert [arm.steps_per_epoch for arm in times.arms[::2]] == [len(batch_sizes(n, 100, "keep")) for n in sizes]
    assert set(times.by_round) == {CONTROL, *(arm.label for arm in times.arms)}


def test_an_exponent_is_fitted_within_each_block() -> None:
    """Against numpy's polynomial and scipy's t: a step of n^0.5 within an epoch of ceil(n / 100) steps."""
    section, times = by_size()
    draw = np.random.default_rng(0)
    blocks = {arm.label: draw.lognormal(0.0, 0.1, 7) for arm in times.arms}
    sizes = {arm.label: arm.config.data.train_size or 0 for arm in section.arms}
    made = replace(
        times, arms=tuple(replace(a, block_ms=tuple(blocks[a.label] * sizes[a.label] ** 0.5)) for a in times.arms)
    )
    for growth in growths(section, made):
        labels = [label for label in sizes if label.startswith(growth.label)]
        x = np.log([sizes[label] for label in labels])
        y = np.log(
            [blocks[label] * sizes[label] ** 0.5 * math.ceil(sizes[label] / 100) for label in labels]
        )  # sizes by blocks
        slopes = np.polyfit(x, y, 1)[0]
        assert growth.exponent.value == pytest.approx(slopes.mean())
        level = critical_level(LOOKS, 0.05)
        half = scipy.stats.t.ppf(1 - level / 2, 6) * scipy.stats.sem(slopes)
        assert growth.exponent.low == pytest.approx(slopes.mean() - half, rel=1e-3)
        assert growth.exponent.high == pytest.approx(slopes.mean() + half, rel=1e-3)
        rows = [row for row in growth_rows(section, made) if row["arm"].startswith(growth.label)]
        assert {row["exponent"] for row in rows} == {growth.exponent.value}
        assert len(rows) == 3


def test_too_few_sizes_are_refused() -> None:
    (section,) = sections("norm=none,batch", "data.train_size=300")
    with pytest.raises(ConfigError, match=r"--scale data: digits has 300 training images, and 3 sizes .* of 32\nset"):
        levels(section, "data")


def test_a_bench_over_training_sets_ends_with_exponents(where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(["norm=none,population", *QUICK, "data.train_size=512", "model=mlp"], scale="data")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    last = shown.partition("ms a step by images in the training set")[2]
    assert [line.split()[0] for line in last.splitlines() if line.startswith(("none ", "population "))] == [
        "none",
        "population",
    ]
    bench(["norm=none,batch", *QUICK, "data.train_size=512", "model=mlp"], scale="data", format="csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["arm"] for row in rows] == [f"{norm} {n}" for n in (128, 256, 512) for norm in ("none", "batch")]
    assert all(float(row["exponent_low"]) <= float(row["exponent"]) <= float(row["exponent_high"]) for row in rows)
    folders = sorted(where.glob("runs/*-bench-*/*/environment.json"))
    marks = {json.loads(path.read_text())["data_fingerprint"] for path in folders}
    assert len(folders) == 12
    assert len(marks) == 3  # each arm is of its own training set


# ---------------------------------------------------------------- rounds, and claims on blocks


def test_every_round_is_in_the_record(tmp_path: Path) -> None:
    """What is shown follows from the rounds by other means: medians, and the mean over blocks of median ratios."""
    found = sections("norm=none,batch")
    times = measure(contest(found[0]), FEW, 60.0, ignore)
    folder = record(found, [times], tmp_path)
    rows = list(csv.DictReader((folder / "rounds.csv").read_text().splitlines()))
    assert {row["arm"] for row in rows} == {"none", "batch", CONTROL}
    assert len(rows) == 3 * times.rounds == 3 * 4 * times.blocks
    steps = {arm: [float(row["step_ms"]) for row in rows if row["arm"] == arm] for arm in ("none", "batch")}
    summary = json.loads((folder / "1" / "summary.json").read_text())["bench"]
    assert statistics.median(steps["batch"]) == pytest.approx(summary["step_ms"], rel=1e-5)
    ratios = [a / b for a, b in zip(steps["batch"], steps["none"], strict=True)]
    logs = [math.log(statistics.median(ratios[i : i + 4])) for i in range(0, len(ratios), 4)]
    assert math.exp(statistics.fmean(logs)) == pytest.approx(summary["ratio"], rel=1e-5)
    medians = [statistics.median(steps["batch"][i : i + 4]) for i in range(0, len(ratios), 4)]
    assert summary["by_block"]["step_ms"] == pytest.approx(medians, rel=1e-5)
    assert summary["by_block"]["epoch_ms"] == pytest.approx([10 * ms for ms in medians], rel=1e-5)  # 300 by 32
    assert summary["by_block"] == by_block(times.arms[1])
    assert summary["epoch_ms"] == pytest.approx(10 * summary["step_ms"])


def of_a_bench(**by_block: Any) -> Run:
    """An arm of a bench with these figures by block; keys with a dot are of its configuration."""
    config = {"norm.name": "batch", "data.name": "digits", "model.name": "mlp", "bench.graph": False, "seed": 0}
    config |= by_block.pop("config", {})
    summary = {"state": "done", "curve": {}, "bench": {"by_block": by_block, "ratio": 1.5}}
    return Run(
        folder=Path(),
        state="done",
        identity=str(config),
        config=config,
        seed=0,
        order=0,
        error=None,
        environment={},
        summary=summary,
    )


def test_a_slope_over_levels_of_a_bench_is_one_a_block() -> None:
    draw = np.random.default_rng(1)
    sizes, times = np.array([128, 256, 512, 1024]), draw.lognormal(0.0, 0.2, (4, 6)) * 3
    runs = [
        of_a_bench(epoch_ms=list(row), config={"data.train_size": int(n)}) for n, row in zip(sizes, times, strict=True)
    ]
    evidence = evidence_of(parse_sentence("slope(log epoch_ms over log train_size) > 1").of, runs)
    slopes = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    found = evidence.interval(0.05, ())
    half = scipy.stats.t.ppf(0.975, 5) * scipy.stats.sem(slopes)
    assert found.value == pytest.approx(slopes.mean())
    assert (found.low, found.high) == pytest.approx((slopes.mean() - half, slopes.mean() + half), rel=1e-3)


def test_what_is_undecided_of_a_bench_asks_for_blocks_and_not_for_seeds() -> None:
    rule = parse_rule("images_per_second > 100")
    (part,) = decide(rule, [of_a_bench(images_per_second=[90.0, 120.0, 100.0, 110.0])]).parts
    assert re.search(r"about \d+ blocks would decide it", part.because)
    assert figures_of(part).endswith(", 4 blocks")
    (part,) = decide(rule, [of_a_bench(images_per_second=[90.0, 120.0])]).parts
    assert part.because == "2 blocks; 3 or more can decide"


def test_differences_and_values_of_a_bench_are_by_block() -> None:
    runs = [
        of_a_bench(images_per_second=values, config={"norm.name": norm})
        for norm, values in (("batch", [90.0, 92.0, 88.0, 91.0]), ("none", [100.0, 101.0, 99.5, 100.0]))
    ]
    text = "images_per_second[norm=none] - images_per_second[norm=batch] > 5"
    assert evidence_of(parse_sentence(text).of, runs).value == pytest.approx(100.125 - 90.25)
    with pytest.raises(Undecidable, match="the bench keeps no blocks of it"):
        evidence_of(parse_sentence("step_ms[norm=none] < 5").of, runs)
    trained = replace(runs[0], summary={"state": "done", "curve": {}, "num_parameters": 5}, identity="t")
    mixed = parse_sentence("images_per_second[norm=none] / num_parameters[norm=batch] > 5").of
    with pytest.raises(ConfigError, match="figures by seed and by block of a bench cannot be paired; use step_ratio"):
        evidence_of(mixed, [*runs, trained])


def test_a_gate_takes_a_slope_of_a_bench(where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gates = ["slope(log epoch_ms[norm=batch] over log train_size) > -5"]
    bench(["norm=none,batch", *QUICK, "model=mlp", "data.train_size=100,200,300"], gate=gates)
    assert "gate met: slope(log epoch_ms[norm=batch] over log train_size) > -5" in capsys.readouterr().out
    (folder,) = where.glob("runs/*-bench-*")
    assert {run.config["data.train_size"] for run in read_runs([folder])[0]} == {100, 200, 300}


# ---------------------------------------------------------------- evaluation


def test_what_an_evaluation_is_timed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept statistics are left alone, those of the batch move them, and folded there is no norm left."""
    seen: dict[str, nn.Module] = {}
    made = inference.forward_of

    def watched(model: nn.Module, *rest: Any) -> Any:
        seen[f"model {len(seen)}"] = model
        return made(model, *rest)

    monkeypatch.setattr(inference, "forward_of", watched)
    stats = "eval.stats=running,batch,folded"
    found = sections("norm=none,batch,layer", stats, "eval.batch_size=4", "model.dropout=0.5", "bench.mode=inference")
    (section,) = found
    labels = ["none stats=running", "batch stats=running", "batch stats=batch", "batch stats=folded"]
    assert [arm.label for arm in section.arms] == [*labels, "layer stats=running"]
    one = inference.inference_contest(section)
    assert one.batch_size == 4
    steppers = [one.make[label]() for label in labels]
    figures = [stepper.step() for stepper in steppers]
    assert all(len(each) == 5 and each[0] > 0 and math.isnan(each[1]) for each in figures)
    _, kept, own, folded = seen.values()
    updates = [[int(layer.num_batches_tracked) for _, layer in norm_layers(model)] for model in (kept, own)]
    assert updates == [[0, 0], [1, 1]]
    assert list(norm_layers(folded)) == []
    assert not any(module.training for model in seen.values() for module in model.modules() if "Drop" in str(module))
    assert steppers[0].num_parameters < steppers[1].num_parameters


def test_an_inference_bench_is_recorded_by_statistics_and_batch(
    where: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = "step_ratio[norm=batch eval.batch_size=8 stats=folded] / step_ratio[norm=none eval.batch_size=8] < 99"
    bench(["norm=none,batch", *QUICK], inference=True, gate=[gate])
    shown = capsys.readouterr()
    assert "gate met" in shown.out
    assert max(map(len, shown.out.splitlines()[:-3])) <= 80
    assert shown.err.count("no statistics are kept by norm=none, so there is one way to evaluate") == 1
    (folder,) = where.glob("runs/*-bench-*")
    arms = {
        (r.config["norm.name"], r.config["eval.stats"], r.config["eval.batch_size"]) for r in read_runs([folder])[0]
    }
    ways = [("none", "running"), ("batch", "running"), ("batch", "batch"), ("batch", "folded")]
    assert arms == {(*way, size) for way in ways for size in (1, 8, 64)}
    rows = list(csv.DictReader((folder / "bench.csv").read_text().splitlines()))
    for size, part in zip((1, 8, 64), (rows[:4], rows[4:8], rows[8:]), strict=True):
        for row in part:
            assert float(row["images_per_second"]) == pytest.approx(1e3 * size / float(row["step_ms"]), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["eval.stats=running,precise", "bench.mode=inference"],
            r"eval.stats=precise: takes the time of another\n",
        ),
        (
            ["bench.graph=true", "bench.mode=inference"],
            r"bench.graph=true: cannot be combined with bench.mode",
        ),
        (["bench.mode=training"], r"bench.mode=training: must be one of steps, inference, profile"),
    ],
)
def test_what_cannot_be_timed_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sections("norm=none,batch", *overrides)


def test_a_batch_that_the_test_images_do_not_fill_is_refused() -> None:
    (section,) = sections("norm=none,batch", "bench.mode=inference", "eval.batch_size=5000")
    with pytest.raises(ConfigError, match=r"eval.batch_size=5000: digits has 360 test images"):
        inference.inference_contest(section)


def test_one_block_has_no_interval() -> None:
    assert over_blocks([2.0]).low is None
    assert math.isnan(over_blocks([]).value)


# ---------------------------------------------------------------- the profiler


def test_the_norm_of_a_network_is_found_in_both_passes() -> None:
    """Of `none` nothing is the norm's; with batch norm both passes have it, and all shares add up to 1."""
    (section,) = sections("norm=none,batch,renorm,population,frn", "trainer.threads=1")
    found = profiling.profiled(section)
    shares = {arm.label: {group: share.value for group, share in arm.shares.items()} for arm in found.arms}
    assert all(math.isclose(sum(of.values()), 1.0) for of in shares.values())
    assert shares["none"]["norm forward"] == shares["none"]["norm backward"] == 0.0
    norms = [label for label in shares if label != "none"]
    assert all(shares[label]["norm forward"] > 0 and shares[label]["norm backward"] > 0 for label in norms)
    assert all(of[group] > 0 for of in shares.values() for group in ("conv and linear", "activation", "optimizer"))
    assert all(len(steps) == profiling.STEPS for arm in found.arms for steps in arm.by_step.values())


def test_operations_are_in_the_group_of_their_module() -> None:
    """A convolution, batch norm, relu and their gradients, named by torch; the buffers' update is the norm's too."""
    (section,) = sections("norm=renorm,none", "trainer.threads=1")
    arm = next(arm for arm in section.arms if arm.label == "renorm")
    bundle, training_set, batches = profiling.loaded_data(arm.config, None, CPU)
    one = stepping.trainee(arm.config, bundle, training_set, CPU)
    profiling._lay_ranges(one)
    with profiling._profiler(CPU) as watched, profiling.record_function(profiling.STEP):
        loop.train_step(one.forward, one.optimizer, one.mean_loss, *batches[0], 0, one.refresh)
    events = list(watched.events() or ())
    made = profiling.made_by(events)
    groups = {
        name: {profiling._group_of(event, made) for event in events if event.name == name}
        for name in ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::lerp_", "aten::relu",
                     "aten::threshold_backward", "aten::batch_norm_update_stats", "aten::native_batch_norm_backward",
                     "aten::_fused_sgd_", "aten::_log_softmax_backward_data")
    }  # fmt: skip
    assert groups == {
        "aten::mkldnn_convolution": {"conv and linear"},
        "aten::convolution_backward": {"conv and linear"},
        "aten::lerp_": {"norm forward"},
        "aten::relu": {"activation"},
        "aten::threshold_backward": {"activation"},
        "aten::batch_norm_update_stats": {"norm forward"},
        "aten::native_batch_norm_backward": {"norm backward"},
        "aten::_fused_sgd_": {"optimizer"},
        "aten::_log_softmax_backward_data": {"other"},
    }


def test_shares_are_of_medians_over_steps() -> None:
    """One step in which another program had the processor does not count."""
    step = dict(zip(profiling.GROUPS, (1.0, 2.0, 4.0, 1.0, 0.5, 1.5), strict=True))
    steps = [{group: ms * factor for group, ms in step.items()} for factor in np.linspace(0.9, 1.1, 19)]
    found = profiling.arm_of("x", 3, [*steps, step | {"optimizer": 500.0}])
    assert [round(share.value, 2) for share in found.shares.values()] == [0.1, 0.2, 0.4, 0.1, 0.05, 0.15]
    assert found.ms == pytest.approx(10.0, rel=0.02)
    assert all((s.low or 0) <= s.value <= (s.high or 0) for s in found.shares.values())


def test_a_profile_is_a_table_and_a_record(where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(["norm=none,batch", *QUICK], profile=True)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert all(
        word in shown for word in ("forward", "backward", "optimizer", "profiler")
    )  # titles break where it is wide
    (path,) = where.glob("runs/*-bench-*/bench.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["arm"], float(row["norm_forward_share"]) == 0) for row in rows] == [("none", True), ("batch", False)]
    with pytest.raises(ConfigError, match="--profile: cannot be combined with --layers"):
        bench(["norm=none,batch", *QUICK], profile=True, layers=True)
    with pytest.raises(ConfigError, match=r"--profile: takes training steps as they are"):
        bench(["norm=none,batch", *QUICK, "bench.mode=inference"], profile=True)
    with pytest.raises(ConfigError, match=r"bench.mode=profile: is --profile here"):
        bench(["norm=none,batch", *QUICK, "bench.mode=profile"])


def test_a_claim_takes_the_share_of_the_norms(where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _measure(["norm=none,batch", *QUICK, "bench.mode=profile"], where / "pool")
    runs = read_runs([where / "pool"])[0]
    text = "norm_forward_share[norm=batch] - norm_forward_share[norm=none] > 0"
    found = evidence_of(parse_sentence(text).of, runs).interval(0.05, ())
    shares = runs[-1].summary["bench"]["by_block"]["norm_forward_share"]  # type: ignore[index]
    assert found.n == profiling.STEPS
    assert found.value == pytest.approx(100 * statistics.fmean(shares))
    (section,) = compare([where / "pool"], metrics=["norm_share"]).sections
    assert not [note for note in section.notes if "step ratio" in note], "a profile has none"
