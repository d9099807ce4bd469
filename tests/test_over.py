"""Arms over the levels of a number: one table, slopes within seeds, differences of slopes, and what has none."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
from helpers_cli import ROOT, bnlab
from helpers_runs import bnlab_compare, make_run
from scipy import stats

from bnlab.compare.over import Levels, compare_over
from bnlab.compare.slopes import NoSlope, slopes
from bnlab.errors import ConfigError

SIZES = (128, 256, 512, 1024)
NOISE = (0.004, -0.003, 0.001, -0.002, 0.003, 0.002, -0.001, -0.004)


def accuracy(norm: str, size: int, seed: int) -> float:
    steepness = {"none": 0.02, "batch": 0.03}[norm]
    wobble = NOISE[(3 * seed + SIZES.index(size) * (1 if norm == "none" else 5)) % len(NOISE)]
    return 0.7 + steepness * math.log2(size / 128) + 0.01 * seed + wobble


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    """Two arms at four sizes of the training set, each with data of its own."""
    number = 0
    for size in SIZES:
        for norm in ("none", "batch"):
            for seed in range(4):
                curve = [0.1, accuracy(norm, size, seed)]
                changes = {"data.train_size": size}
                place = tmp_path / "runs" / "sweep" / str(number)
                make_run(place, norm=norm, seed=seed, test_accuracy=curve, config=changes, fingerprint=f"of {size}")
                number += 1
    return tmp_path / "runs"


def over(folder: Path, key: str, **how: object) -> Levels:
    (levels,), _ = compare_over([folder], key, **how)  # type: ignore[arg-type]
    return levels


def reference(norm: str) -> list[float]:
    return [
        float(stats.linregress([math.log2(s) for s in SIZES], [accuracy(norm, s, seed) for s in SIZES]).slope)
        for seed in range(4)
    ]


def test_slopes_are_those_of_each_seed_per_doubling_with_t_over_seeds(sizes: Path) -> None:
    levels = over(sizes, "train_size")
    assert levels.columns == list(SIZES)
    assert levels.per == "doubling"
    for row, slope in zip(levels.section.rows, levels.slopes, strict=True):
        own = reference(row.label)
        low, high = stats.t.interval(0.95, 3, statistics.fmean(own), stats.sem(own))
        assert slope is not None
        assert (slope.value, slope.low, slope.high) == pytest.approx((statistics.fmean(own), low, high), abs=1e-12)


def test_slopes_are_compared_seed_by_seed(sizes: Path) -> None:
    none, batch = over(sizes, "data.train_size").differences
    assert none is None
    assert batch is not None
    differences = [a - b for a, b in zip(reference("batch"), reference("none"), strict=True)]
    assert batch.value == pytest.approx(statistics.fmean(differences))
    assert batch.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


@pytest.mark.slow
def test_one_table_a_chart_and_the_same_figures_in_every_format(sizes: Path) -> None:
    for width in ("80", "120"):
        shown = bnlab_compare(str(sizes), "--over", "data.train_size", COLUMNS=width)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.count("±: 95% interval") == 1
        assert max(map(len, shown.stdout.splitlines())) <= int(width)
        for part in ("per doubling: slope, points per doubling of data.train_size", "by train_size (log scale)"):
            assert part in shown.stdout
    document = json.loads(bnlab_compare(str(sizes), "--over", "data.train_size", "-f", "json").stdout)
    assert (document["columns"], document["slope_per"]) == (list(SIZES), "doubling")
    (none, batch) = document["slopes"]
    assert batch["slope"]["value"] == pytest.approx(100 * statistics.fmean(reference("batch")))
    assert none["difference"] is None
    table = bnlab_compare(str(sizes), "--over", "data.train_size", "-f", "csv").stdout
    lines = list(csv.DictReader(io.StringIO(table)))
    assert [line["norm.name"] for line in lines] == ["none", "batch"]
    assert float(lines[1]["slope difference"]) == batch["difference"]["value"]
    assert float(lines[1]["p"]) == batch["difference"]["p"]
    for form in ("md", "plain"):
        printed = bnlab_compare(str(sizes), "--over", "data.train_size", "-f", form).stdout
        assert f"{batch['slope']['value']:+.1f}"[:3] in printed
        assert "per doubling" in printed


def test_levels_that_span_no_factor_have_a_slope_per_one(tmp_path: Path) -> None:
    for seed in range(3):
        for level in (0.0, 0.1, 0.2):
            place = tmp_path / f"{seed} {level}"
            make_run(place, seed=seed, test_accuracy=[0.5, 0.9 - 0.5 * level], config={"model.dropout": level})
    levels = over(tmp_path, "dropout")
    assert levels.per == "1"
    assert [slope.value for slope in levels.slopes if slope] == [pytest.approx(-0.5)]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[32], [64], [32, 64]], "is no number in all runs; it is [32,64], [32], [64]"),
        ([64, 128, None], "is no number in all runs; it is null"),
        ([64, 128], "they need 3 levels of model.widths, and there are 64, 128"),
    ],
)
def test_the_table_without_slopes_says_why(tmp_path: Path, values: list[object], reason: str) -> None:
    for seed in range(3):
        for number, value in enumerate(values):
            make_run(tmp_path / f"{seed} {number}", seed=seed, config={"model.widths": value})
    levels = over(tmp_path, "model.widths")
    assert (levels.per, levels.slopes, len(levels.columns)) == (None, [None], len(values))
    assert any(reason in note for note in levels.section.notes), levels.section.notes
    for form in ("table", "plain"):
        assert bnlab_compare(str(tmp_path), "--over", "model.widths", "-f", form).returncode == 0


def test_cells_without_a_run_are_named_and_slopes_compared_over_the_levels_of_both(sizes: Path) -> None:
    for status in sizes.glob("*/*/status.json"):
        config = json.loads(status.read_text())["config"]
        if (config["norm"]["name"], config["data"]["train_size"]) == ("batch", 512):
            status.unlink()
    levels = over(sizes, "data.train_size")
    assert levels.cells[1][2] is None
    assert "No run: batch at train_size=512." in levels.section.notes
    assert any("slopes over the levels of both, 128, 256, 1024" in note for note in levels.section.notes)
    shared = (128, 256, 1024)
    slope = {
        (norm, seed): stats.linregress([math.log2(s) for s in shared], [accuracy(norm, s, seed) for s in shared]).slope
        for norm in ("none", "batch")
        for seed in range(4)
    }
    assert levels.differences[1] is not None
    assert levels.differences[1].value == pytest.approx(
        statistics.fmean(slope["batch", s] - slope["none", s] for s in range(4))
    )


def test_a_run_that_diverged_costs_its_seed_the_slope_and_the_difference_its_p(sizes: Path) -> None:
    (lost,) = [
        path.parent
        for path in sizes.glob("*/*/status.json")
        if (c := json.loads(path.read_text())["config"])["norm"]["name"] == "batch"
        and (c["seed"], c["data"]["train_size"]) == (2, 256)
    ]
    changes = {"data.train_size": 256}
    make_run(lost, norm="batch", seed=2, state="diverged", config=changes, fingerprint="of 256")
    levels = over(sizes, "data.train_size")
    assert levels.slopes[1] is not None
    assert (levels.slopes[1].n, levels.slopes[1].num_lost) == (3, 1)
    assert levels.differences[1] is not None
    assert levels.differences[1].p is None
    assert any("over 3 of 4 seeds" in note for note in levels.section.notes)
    assert any(note.startswith("†") for note in levels.section.notes)


def test_an_arm_without_the_key_has_a_column_of_its_own_and_is_missing_nowhere(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / f"none {seed}", norm="none", seed=seed)
        for size in (8, 16, 32):
            make_run(tmp_path / f"{size} {seed}", norm="ghost", seed=seed, config={"norm.size": size})
    levels = over(tmp_path, "norm.size")
    assert [row.label for row in levels.section.rows] == ["none", "ghost"]
    assert (len(levels.columns), levels.slopes[0]) == (4, None)
    assert levels.slopes[1] is not None
    assert not any(note.startswith("No run") for note in levels.section.notes)


def test_what_goes_along_with_the_level_makes_no_arm_and_is_named(tmp_path: Path) -> None:
    for seed in range(3):
        for lr, epochs in ((0.1, 3.0), (0.2, 6.0), (0.4, 12.0)):
            make_run(tmp_path / f"{lr} {seed}", seed=seed, config={"optim.lr": lr, "trainer.epochs": epochs})
    levels = over(tmp_path, "lr")
    assert len(levels.section.rows) == 1
    assert any("trainer.epochs" in note for note in levels.section.notes)


def test_times_have_slopes_only_where_every_run_arrived(tmp_path: Path) -> None:
    for seed in range(3):
        for lr in (0.1, 0.2, 0.4):
            curve = [0.1, 0.99, 0.99] if lr > 0.1 or seed else [0.1, 0.5, 0.5]
            make_run(tmp_path / f"{lr} {seed}", seed=seed, config={"optim.lr": lr}, test_accuracy=curve)
    levels = over(tmp_path, "lr", metric="steps_to_target")
    assert levels.slopes == [None]
    assert any("not every run reached the target" in note for note in levels.section.notes)
    shown = bnlab_compare(str(tmp_path), "--over", "lr", "--metric", "steps_to_target").stdout
    assert "\nsteps to target\n100.0 |" in shown  # in steps, not on the scale of the accuracy that they are to


@pytest.mark.parametrize(("apart", "decides"), [(1, False), (10, True)])
def test_slopes_of_times_of_runs_that_ran_at_once_decide_nothing(tmp_path: Path, apart: int, decides: bool) -> None:
    for n, (norm, seed, lr) in enumerate(itertools.product(("none", "batch"), range(4), (0.1, 0.2, 0.4))):
        took = 2.0 + (1.0 + 0.01 * seed) * (norm == "batch") * lr
        at, ran = 10**18 + int(n * apart * 1e8), {"wall_seconds": 1.0}
        make_run(tmp_path / str(n), norm=norm, seed=seed, config={"optim.lr": lr}, step_ms=took, order=at, summary=ran)
    levels = over(tmp_path, "lr", metric="step_ms")
    (difference,) = filter(None, levels.differences)
    assert (difference.p is not None, any("‡" in note for note in levels.section.notes)) == (decides, not decides)


def test_different_data_at_one_level_stand_in_no_table(tmp_path: Path) -> None:
    for seed in range(2):
        for valid, mark in ((100, "a"), (200, "b")):
            for size in SIZES:
                changes = {"data.valid_size": valid, "data.train_size": size}
                place = tmp_path / f"{valid} {size} {seed}"
                make_run(place, seed=seed, config=changes, fingerprint=f"{mark}{size}")
    shown = bnlab_compare(str(tmp_path), "--over", "data.train_size")
    assert shown.returncode == 2
    assert "keep one value of data.valid_size with --where" in shown.stderr
    assert bnlab_compare(str(tmp_path), "--over", "data.train_size", "--where", "valid_size=100").returncode == 0


def test_a_run_that_ended_before_it_knew_its_data_stands_at_its_level(sizes: Path) -> None:
    changes = {"data.train_size": 128}
    make_run(
        sizes / "sweep" / "x",
        norm="batch",
        seed=9,
        state="failed",
        config=changes,
        environment={"data_fingerprint": None},
    )
    cell = over(sizes, "data.train_size").cells[1][0]
    assert cell is not None
    assert cell.states == {"done": 4, "failed": 1}


def test_what_cannot_be_compared_over_is_refused(sizes: Path) -> None:
    for arguments, words in {
        ("--over", "sede"): "no run has such a key",
        ("--over", "seed"): "no factor",
        ("--over", "data.name"): "--pivot",
        ("--over", "train_size", "--pivot", "norm x seed"): "cannot be combined with --pivot",
        ("--over", "train_size", "--metric", "test_loss", "--metric", "kl"): "--metric kl",
        ("--over", "train_size", "--baseline", "gost"): "no such arm",
    }.items():
        shown = bnlab("compare", str(sizes), *arguments, cwd=ROOT)
        assert (shown.returncode, shown.stdout) == (2, ""), shown
        assert words in shown.stderr


def test_slopes_need_three_levels_of_a_seed() -> None:
    assert slopes({0: [(1.0, 1.0), (2.0, 2.0), (4.0, 3.0)]}, log_levels=True)[0] == pytest.approx(1 / math.log(2))
    for points in ({}, {0: [(1.0, 1.0), (2.0, 1.0)]}, {0: [(1.0, 1.0), (2.0, 1.0)], 1: [(3.0, 1.0)]}):
        with pytest.raises(NoSlope):
            slopes(points)
    with pytest.raises(NoSlope, match="not positive"):
        slopes({0: [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)]}, log_levels=True)


def test_benches_alone_have_no_levels(tmp_path: Path) -> None:
    make_run(tmp_path / "0", summary={"bench": {"arm": "none"}})
    with pytest.raises(ConfigError, match="no training"):
        compare_over([tmp_path], "lr")
