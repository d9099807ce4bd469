"""Comparisons of synthetic run folders: arms, pairing, censoring, divergence, baselines, sections, broken folders."""

from __future__ import annotations

import csv
import fcntl
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers_runs import STATUS, make_run
from scipy import stats

from bnlab.compare.comparison import compare
from bnlab.compare.result import Comparison, Row, Section
from bnlab.errors import ConfigError, RecordError
from bnlab.metrics import Censored, find_metric, metrics, warnings_of
from bnlab.record.read import read_documents, read_runs
from bnlab.record.read_files import LARGEST_FILE
from bnlab.report.compare_formats import FORMATS
from bnlab.report.heading import heading

NONE = [0.970, 0.972, 0.969, 0.974, 0.971]
BATCH = [0.981, 0.984, 0.979, 0.986, 0.983]


def make_arm(root: Path, norm: str, finals: Sequence[float], **options: object) -> None:
    for seed, final in enumerate(finals):
        label = "-".join([norm, *map(str, dict(options.get("config", {})).values()), str(seed)])  # type: ignore[call-overload]
        make_run(root / label, norm=norm, seed=seed, test_accuracy=[0.1, 0.9, final], **options)  # type: ignore[arg-type]


def only(comparison: Comparison) -> Section:
    assert len(comparison.sections) == 1
    return comparison.sections[0]


def labels(section: Section) -> list[str]:
    return [row.label for row in section.rows]


def row(section: Section, label: str) -> Row:
    return next(row for row in section.rows if row.label == label)


def reasons(root: Path) -> dict[str, str]:
    return {folder.name: reason for folder, reason in read_runs([root])[1]}


# Arms and pairing


def test_arms_are_paired_with_none_by_seed(tmp_path: Path) -> None:
    make_arm(tmp_path, "batch", BATCH)
    make_arm(tmp_path, "none", NONE)
    section = only(compare([tmp_path]))
    assert section.changed == ["norm.name"]
    assert labels(section) == ["none", "batch"]
    assert section.main == "test_accuracy"
    none, batch = section.rows
    assert (none.is_baseline, batch.is_baseline) == (True, False)
    assert none.vs_baseline == {}
    assert batch.arm == {"norm.name": "batch"}
    found, expected = batch.metrics["test_accuracy"], stats.t.interval(0.95, 4, sum(BATCH) / 5, stats.sem(BATCH))
    assert (found.low, found.high) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    difference = batch.vs_baseline["test_accuracy"]
    assert difference.n == 5
    assert difference.value == pytest.approx(0.0114)
    assert difference.p == pytest.approx(stats.ttest_rel(BATCH, NONE).pvalue)
    assert batch.curve == [0.1, 0.9, 0.983]
    assert section.settings["optim.lr"] == 0.1
    assert section.settings["model.widths"] == "[32,64]"
    assert "seed" not in section.settings


def test_seeds_that_only_one_arm_has_are_not_paired(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE[:3])
    make_arm(tmp_path, "batch", BATCH)
    section = only(compare([tmp_path]))
    batch = row(section, "batch")
    assert batch.metrics["test_accuracy"].n == 5
    difference = batch.vs_baseline["test_accuracy"]
    assert difference.n == 3
    assert difference.p == pytest.approx(stats.ttest_rel(BATCH[:3], NONE[:3]).pvalue)
    assert any("batch: the difference is over the seeds" in note for note in section.notes)


def test_p_is_corrected_over_the_arms(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE)
    make_arm(tmp_path, "batch", BATCH)
    make_arm(tmp_path, "layer", [0.975, 0.971, 0.978, 0.974, 0.979])
    section = only(compare([tmp_path]))
    raw = [
        stats.ttest_rel(BATCH, NONE).pvalue,
        stats.ttest_rel([0.975, 0.971, 0.978, 0.974, 0.979], NONE).pvalue,
    ]
    assert row(section, "batch").vs_baseline["test_accuracy"].p == pytest.approx(2 * raw[0])
    assert row(section, "layer").vs_baseline["test_accuracy"].p == pytest.approx(raw[1])


def test_keys_that_a_shown_key_settles_are_hidden(tmp_path: Path) -> None:
    for norm in ("none", "batch", "ghost"):
        make_arm(tmp_path, norm, [0.9, 0.91])
    section = only(compare([tmp_path]))
    assert section.changed == ["norm.name"], "norm.momentum and norm.size go with norm.name"
    assert not any("more than the table shows" in note for note in section.notes)
    make_arm(tmp_path, "ghost", [0.9, 0.91], config={"norm.size": 16})
    section = only(compare([tmp_path]))
    assert section.changed == ["norm.name", "norm.size"]
    assert labels(section) == ["norm=none", "norm=batch", "norm=ghost size=16", "norm=ghost size=32"]


def test_a_setting_that_follows_the_arms_is_told(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE)
    make_arm(tmp_path, "batch", BATCH, config={"optim.lr": 0.5})
    section = only(compare([tmp_path]))
    assert section.changed == ["norm.name"]
    assert any("more than the table shows" in note and "lr (0.1, 0.5)" in note for note in section.notes)
    assert not any("All arms ran at" in note for note in section.notes)


def test_order_of_arms(tmp_path: Path) -> None:
    for norm in ("layer", "ghost", "rms", "dyt", "none", "instance", "batch"):
        make_run(tmp_path / norm, norm=norm)
    assert labels(only(compare([tmp_path]))) == ["none", "batch", "ghost", "instance", "layer", "dyt", "rms"]
    for i, rate in enumerate([10.0, 9, 0.5, 1]):
        make_run(tmp_path / "rates" / str(i), norm="none", config={"optim.lr": rate})
    assert labels(only(compare([tmp_path / "rates"]))) == ["0.5", "1", "9", "10.0"]


def test_one_configuration_is_one_arm(tmp_path: Path) -> None:
    make_arm(tmp_path, "ghost", [0.9, 0.91])
    section = only(compare([tmp_path]))
    assert labels(section) == ["ghost"]
    assert section.rows[0].is_baseline
    assert section.rows[0].vs_baseline == {}


def test_what_changes_no_figure_makes_no_arm(tmp_path: Path) -> None:
    make_run(
        tmp_path / "a", seed=0, config={"name": "first", "data.root": "/a", "data.path": "a", "trainer.timeout": 9}
    )
    make_run(
        tmp_path / "b", seed=1, config={"name": "second", "data.root": "/b", "data.path": "b", "trainer.timeout": 99}
    )
    assert only(compare([tmp_path])).rows[0].n == 2


@pytest.mark.parametrize("stats_used", ["running", "batch", "mixed"])
def test_batches_of_evaluation_make_arms(tmp_path: Path, stats_used: str) -> None:
    for size in (2, 200):
        make_run(tmp_path / str(size), config={"eval.batch_size": size, "eval.stats": stats_used})
    section = only(compare([tmp_path]))
    assert labels(section) == ["2", "200"]
    assert not any("left out" in note for note in section.notes)


def test_numbers_of_workers_make_arms(tmp_path: Path) -> None:
    for workers in (1, 2, 4):
        make_run(tmp_path / str(workers), environment={"workers": workers})
    section = only(compare([tmp_path]))
    assert section.changed == ["trainer.workers"]
    assert len(section.rows) == 3


def test_places_of_equal_data_make_one_arm_and_other_data_are_told(tmp_path: Path) -> None:
    for i, (path, mark) in enumerate([("here", "aa"), ("there", "aa"), ("here", "bb"), ("moved", "cc")]):
        make_run(tmp_path / str(i), data="folder", seed=i, config={"data.path": path}, fingerprint=mark)
    heads = {(len(s.rows), s.rows[0].n): heading(s) for s in compare([tmp_path], metrics=["test_accuracy"]).sections}
    assert sorted(heads) == [(1, 1), (1, 2)]
    told = [heading(s)[0].partition(",")[0] for s in compare([tmp_path], metrics=["test_accuracy"]).sections]
    assert told == ["folder (fingerprint aa)", "folder (path=here)", "folder (path=moved)"]


def test_data_that_differ_in_size_are_told_by_it(tmp_path: Path) -> None:
    for size in (100, 200):
        make_run(tmp_path / str(size), data="digits", config={"data.train_size": size}, fingerprint=str(size))
    told = [heading(s)[0] for s in compare([tmp_path]).sections]
    assert told == [f"digits (train_size={n}), 1,000 for validation" for n in (100, 200)]


def test_arms_that_are_equal_to_the_last_bit_are_named(tmp_path: Path) -> None:
    for rest in ("none", "frozen"):
        make_arm(tmp_path, "batch", BATCH, config={"model.norm_rest": rest})
    make_arm(tmp_path, "none", NONE)
    (note,) = [note for note in only(compare([tmp_path])).notes if note.startswith("Equal in every recorded figure")]
    assert note.endswith("no effect: norm=batch norm_rest=frozen and norm=batch norm_rest=none.")


def test_arms_that_a_meter_tells_apart_are_not_equal(tmp_path: Path) -> None:
    for every in (5, 10):
        curve = {"step": [0, 10], "loss_range": [1.0, 1 / every]}
        for seed in range(2):
            make_run(tmp_path / f"{every}-{seed}", seed=seed, config={"measure_every": every},
                     summary={"meters": {"landscape": {"curve": curve}}})  # fmt: skip
    assert not [note for note in only(compare([tmp_path])).notes if note.startswith("Equal in every")]


@pytest.mark.parametrize("value", [1e290, -1e308, float("inf")])
def test_figures_too_large_to_be_squared_were_not_measured(value: float, tmp_path: Path) -> None:
    for seed, read in enumerate((1.0, 2.0, value, value)):
        curve = {"step": [0, 10, 20], "lambda_max": [read] * 3}
        make_run(tmp_path / f"{seed}", seed=seed, summary={"meters": {"curvature": {"curve": curve}}})
        make_run(tmp_path / f"none-{seed}", norm="none", seed=seed, summary={"meters": {"curvature": {"curve": curve}}})
    for row in only(compare([tmp_path], metrics=["lambda_max"])).rows:
        found = row.metrics["lambda_max"]
        assert (found.value, found.n, found.num_lost) == (1.5, 2, 2)


def test_duplicates_count_once(tmp_path: Path) -> None:
    make_run(tmp_path / "old", seed=0, test_accuracy=[0.1, 0.5], order=1)
    make_run(tmp_path / "new", seed=0, test_accuracy=[0.1, 0.9], order=2)
    make_run(tmp_path / "cut", seed=0, state="failed", order=3)
    make_run(tmp_path / "other", seed=1, test_accuracy=[0.1, 0.7])
    section = only(compare([tmp_path, tmp_path / "old"]))
    assert section.rows[0].n == 2
    assert section.rows[0].states == {"done": 2}
    assert section.rows[0].metrics["test_accuracy"].value == pytest.approx(0.8)
    assert any(note.startswith("2 runs left out") for note in section.notes)


def test_sections_are_data_sets(tmp_path: Path) -> None:
    for norm in ("none", "batch"):
        make_run(tmp_path / f"m-{norm}", norm=norm, data="mnist", fingerprint="aa")
        make_run(tmp_path / f"d-{norm}", norm=norm, data="digits", fingerprint="bb")
        make_run(tmp_path / f"x-{norm}", norm=norm, data="digits", fingerprint="cc")
    early = make_run(tmp_path / "early", norm="none", seed=1, data="mnist", state="failed")
    (early / "environment.json").unlink()
    sections = compare([tmp_path]).sections
    assert [s.settings["data.name"] for s in sections] == ["digits", "digits", "mnist"]
    assert [s.target for s in sections] == [0.95, 0.95, 0.98]
    assert row(sections[2], "none").states == {"done": 1, "failed": 1}
    assert all(len(s.rows) == 2 for s in sections)


# Runs that did not go well


def test_diverged_runs_count_but_are_in_no_mean(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE)
    make_arm(tmp_path, "batch", BATCH[:3])
    make_run(tmp_path / "x3", norm="batch", seed=3, test_accuracy=[0.1], state="diverged")
    make_run(tmp_path / "x4", norm="batch", seed=4, state="interrupted", error="Ctrl-C")
    section = only(compare([tmp_path]))
    batch = row(section, "batch")
    assert batch.states == {"done": 3, "diverged": 1, "interrupted": 1}
    assert batch.n == 3
    assert batch.metrics["test_accuracy"].value == pytest.approx(sum(BATCH[:3]) / 3)
    assert any("Runs not finished: 2 of 10 (1 diverged, 1 interrupted)" in note for note in section.notes)


def test_an_arm_without_a_finished_run(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE)
    for seed in range(3):
        make_run(tmp_path / f"b{seed}", norm="batch", seed=seed, state="failed", error="boom")
    section = only(compare([tmp_path], sort="test_accuracy"))
    batch = section.rows[-1]
    assert batch.label == "batch"
    assert (batch.n, batch.states, batch.curve) == (0, {"failed": 3}, [])
    assert batch.vs_baseline == {}
    assert math.isnan(batch.metrics["test_accuracy"].value)
    assert batch.metrics["steps_to_target"].n == 0


def test_all_failed(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / str(seed), seed=seed, state="failed")
    section = only(compare([tmp_path]))
    assert [(r.n, r.states) for r in section.rows] == [(0, {"failed": 2})]


def test_a_running_run_whose_process_is_gone_counts_as_killed(tmp_path: Path) -> None:
    for name in ("live", "dead", "unlocked"):
        make_run(tmp_path / name, norm=name, state="running")
    (tmp_path / "dead" / ".lock").touch()
    held = os.open(tmp_path / "live" / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        states = {run.folder.name: run.state for run in read_runs([tmp_path])[0]}
    finally:
        os.close(held)
    assert states == {"live": "running", "dead": "killed", "unlocked": "killed"}


def test_killed_between_summary_and_status_is_done(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))
    assert [run.state for run in read_runs([tmp_path])[0]] == ["done"]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    make_run(tmp_path / "a", norm="none", test_accuracy=[0.1, 0.9])
    make_run(tmp_path / "b", norm="batch", test_accuracy=[0.1, 0.95])
    section = only(compare([tmp_path]))
    difference = row(section, "batch").vs_baseline["test_accuracy"]
    assert difference.value == pytest.approx(0.05)
    assert (difference.low, difference.high, difference.p, difference.n) == (None, None, None, 1)
    assert any("n=1" in note for note in section.notes)


def test_a_value_that_is_not_finite_is_left_out_and_told(tmp_path: Path) -> None:
    make_run(tmp_path / "a", seed=0, test_accuracy=[0.1, None])
    make_run(tmp_path / "b", seed=1, test_accuracy=[0.1, 0.9])
    section = only(compare([tmp_path]))
    assert section.rows[0].metrics["test_accuracy"].n == 1
    assert section.rows[0].curve == [0.1, 0.9]
    assert any(note.startswith("test_accuracy: 1 finished run without a finite value") for note in section.notes)


# Times to a target


def test_a_target_never_reached_is_censored_and_ranked_last(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", [0.97] * 5)
    for seed, curve in enumerate(
        [[0.1, 0.985, 0.99], [0.1, 0.9, 0.985], [0.1, 0.9, 0.985], [0.1, 0.9, 0.9], [0.1, 0.985]]
    ):
        make_run(tmp_path / f"b{seed}", norm="batch", seed=seed, test_accuracy=curve)
    section = only(compare([tmp_path], sort="steps_to_target"))
    assert labels(section) == ["batch", "none"]
    batch, none = (r.metrics["steps_to_target"] for r in section.rows)
    assert (batch.value, batch.since, batch.low, batch.high) == (200.0, 100.0, 0.0, None)
    assert (batch.n, batch.num_missed, batch.limit) == (5, 1, 200.0)
    assert math.isnan(none.value)
    assert (none.n, none.num_missed, none.limit) == (5, 5, 200.0)
    saved = section.rows[0].vs_baseline["steps_to_target"]
    assert saved.value == pytest.approx(-40.0), "all times cut at step 200: 100, 200, 200, 200, 100"
    assert any("restricted mean" in note for note in section.notes)


def test_times_are_cut_where_the_first_run_of_either_arm_ended(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", [0.97] * 2)  # not arrived by step 200
    make_run(tmp_path / "b0", norm="batch", seed=0, test_accuracy=[0.1, 0.9, 0.9, 0.99])
    make_run(tmp_path / "b1", norm="batch", seed=1, test_accuracy=[0.1, 0.99, 0.99, 0.99])
    saved = row(only(compare([tmp_path])), "batch").vs_baseline["steps_to_target"]
    assert saved.value == -50.0, "300 counts as 200: 0 and -100 against 200"


def test_arms_without_a_figure_rank_after_arms_that_did_not_arrive(tmp_path: Path) -> None:
    make_run(tmp_path / "a", norm="none", state="failed")
    make_run(tmp_path / "b", norm="batch", test_accuracy=[0.1, 0.9])
    make_run(tmp_path / "c", norm="layer", test_accuracy=[0.1, 0.99])
    assert labels(only(compare([tmp_path], sort="steps_to_target"))) == ["layer", "batch", "none"]


def test_no_difference_where_no_arm_arrived(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", [0.97] * 3)
    make_arm(tmp_path, "batch", [0.96] * 3)
    assert "steps_to_target" not in row(only(compare([tmp_path])), "batch").vs_baseline


def test_target_is_on_validation_and_can_be_given(tmp_path: Path) -> None:
    make_run(tmp_path / "a", test_accuracy=[0.99, 0.99, 0.99], valid_accuracy=[0.1, 0.5, 0.8])
    assert math.isnan(only(compare([tmp_path])).rows[0].metrics["steps_to_target"].value)
    section = only(compare([tmp_path], target=0.5))
    assert section.target == 0.5
    assert section.rows[0].metrics["steps_to_target"].value == 100.0
    for wrong in (0.0, 98.0, math.nan):
        with pytest.raises(ConfigError, match="must be a fraction"):
            compare([tmp_path], target=wrong)


def test_data_without_a_usual_target(tmp_path: Path) -> None:
    make_run(tmp_path / "a", data="folder")
    section = only(compare([tmp_path]))
    assert section.target is None
    assert "steps_to_target" not in section.rows[0].metrics
    asked = only(compare([tmp_path], metrics=["test_accuracy", "steps_to_target"]))
    assert any("steps_to_target: this data has no usual target" in note for note in asked.notes)
    with pytest.raises(ConfigError, match="--target"):
        compare([tmp_path], metrics=["steps_to_target"])
    assert "steps_to_target" in only(compare([tmp_path], target=0.9)).rows[0].metrics


# Choices


def test_partial_baseline_is_matched_on_the_other_keys(tmp_path: Path) -> None:
    for model, shift in (("cnn", 0.0), ("mlp", -0.1)):
        make_arm(tmp_path, "none", [a + shift for a in NONE], config={"model.name": model})
        make_arm(tmp_path, "batch", [a + shift for a in BATCH], config={"model.name": model})
    section = only(compare([tmp_path]))
    assert labels(section) == [
        "norm=none model=cnn",
        "norm=none model=mlp",
        "norm=batch model=cnn",
        "norm=batch model=mlp",
    ]
    assert [r.is_baseline for r in section.rows] == [True, True, False, False]
    assert [r.vs_baseline["test_accuracy"].value for r in section.rows[2:]] == [pytest.approx(0.0114)] * 2
    whole = only(compare([tmp_path], baseline="norm=none model=cnn"))
    assert [r.is_baseline for r in whole.rows] == [True, False, False, False]
    assert row(whole, "norm=batch model=mlp").vs_baseline["test_accuracy"].value == pytest.approx(0.0114 - 0.1)
    by_model = only(compare([tmp_path], baseline="mlp"))
    assert row(by_model, "norm=batch model=cnn").vs_baseline["test_accuracy"].value == pytest.approx(0.1)


def test_baseline_specs(tmp_path: Path) -> None:
    make_arm(tmp_path, "batch", BATCH)
    make_arm(tmp_path, "ghost", BATCH, config={"norm.size": 16})
    make_arm(tmp_path, "ghost", BATCH, config={"norm.size": 32})
    assert row(only(compare([tmp_path])), "norm=batch").is_baseline, "without none the first arm"
    section = only(compare([tmp_path], baseline="norm=ghost,size=16"))
    assert [r.label for r in section.rows if r.is_baseline] == ["norm=ghost size=16"]
    assert all(r.is_baseline or "test_accuracy" in r.vs_baseline for r in section.rows)
    with pytest.raises(ConfigError, match="norm=batch would have 2"):
        compare([tmp_path], baseline="ghost")
    for unknown in ("norm=bach", "lr=3", "", "norm=ghost size=17"):
        with pytest.raises(ConfigError, match=r"no such arm[^\n]*\nthere are: norm=batch"):
            compare([tmp_path], baseline=unknown)


def test_an_arm_without_its_baseline_has_no_difference(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE)
    make_arm(tmp_path, "batch", BATCH)
    make_arm(tmp_path, "batch", BATCH, config={"optim.lr": 0.5})
    section = only(compare([tmp_path]))
    assert row(section, "norm=batch lr=0.5").vs_baseline == {}
    assert any("norm=batch lr=0.5: no difference" in note for note in section.notes)


def test_by_pools_the_other_keys_and_says_so(tmp_path: Path) -> None:
    for rate, shift in ((0.1, 0.0), (0.5, 0.004)):
        make_arm(tmp_path, "none", NONE, config={"optim.lr": rate})
        make_arm(tmp_path, "batch", [a + shift for a in BATCH], config={"optim.lr": rate})
    section = only(compare([tmp_path], by=["norm"]))
    assert section.changed == ["norm.name"]
    batch = row(section, "batch")
    assert (batch.n, batch.metrics["test_accuracy"].n) == (10, 5), "ten runs, but five seeds"
    assert batch.vs_baseline["test_accuracy"].value == pytest.approx(0.0134)
    assert (batch.num_runs, batch.num_seeds) == (10, 5)
    assert any("differ in lr (0.1, 0.5) are pooled" in note for note in section.notes)
    few = only(compare([tmp_path], by=["norm"], where=["seed=0"]))
    assert "Each arm has one seed with a finite figure (n=1): no interval and no p can be given, and seeds differ." in (
        few.notes
    )
    assert labels(only(compare([tmp_path], by=["lr", "norm"])))[:2] == ["lr=0.1 norm=none", "lr=0.1 norm=batch"]
    with pytest.raises(ConfigError, match="more than one key"):
        compare([tmp_path], by=["momentum"])
    with pytest.raises(ConfigError, match="did you mean"):
        compare([tmp_path], by=["optim.lrr"])


def test_where_filters(tmp_path: Path) -> None:
    for norm in ("none", "batch", "ghost"):
        make_arm(tmp_path, norm, [0.9, 0.91])
        make_arm(tmp_path, norm, [0.9, 0.91], config={"optim.lr": 0.5})
    section = only(compare([tmp_path], where=["norm=none,ghost", "lr=0.50"]))
    assert labels(section) == ["none", "ghost"]
    assert section.settings["optim.lr"] == 0.5
    assert only(compare([tmp_path], where=["norm=none", "lr=0.1", "seed=1"])).rows[0].n == 1
    assert labels(only(compare([tmp_path], where=["model.widths=[32,64]", "norm=none"]))) == ["0.1", "0.5"]
    with pytest.raises(ConfigError, match=r"no run has it\nnorm.name is none, batch, ghost"):
        compare([tmp_path], where=["norm=lay"])
    with pytest.raises(ConfigError, match="must be KEY=VALUE"):
        compare([tmp_path], where=["norm"])


def test_sort_by_a_metric_knows_the_direction(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", [0.95, 0.96], step_ms=1.0)
    make_arm(tmp_path, "batch", [0.97, 0.98], step_ms=3.0)
    make_arm(tmp_path, "layer", [0.96, 0.97], step_ms=2.0)
    assert labels(only(compare([tmp_path], sort="test_accuracy"))) == ["batch", "layer", "none"]
    assert labels(only(compare([tmp_path], sort="test_loss"))) == ["batch", "layer", "none"]
    assert labels(only(compare([tmp_path], sort="step_ms"))) == ["none", "layer", "batch"]
    assert labels(only(compare([tmp_path], sort="arm"))) == ["none", "batch", "layer"]


def test_metrics_are_chosen_and_the_first_is_the_main_one(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE)
    section = only(compare([tmp_path], metrics=["valid_loss", "step_ms"]))
    assert section.main == "valid_loss"
    assert list(section.rows[0].metrics) == ["valid_loss", "step_ms"]
    assert section.rows[0].curve[0] == pytest.approx(2.07)
    with pytest.raises(ConfigError, match="did you mean test_accuracy"):
        compare([tmp_path], metrics=["test_acuracy"])
    with pytest.raises(ConfigError, match=r"no such metric.*\n`bnlab list metrics` names all"):
        compare([tmp_path], sort="speed")


# Notes


def test_notes_on_learning_rate_power_and_environment(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE)
    make_arm(tmp_path, "batch", [a + 0.0001 * (-1) ** i for i, a in enumerate(NONE)], environment={"torch": "2.14.0"})
    notes = only(compare([tmp_path])).notes
    assert any("All arms ran at optim.lr=0.1" in note for note in notes)
    assert any(note.startswith("5 paired seeds can show a true difference in test acc of ") for note in notes)
    assert any("Seeds an arm needs" in note and "batch" in note for note in notes)
    assert (
        "No run of batch and none shares an environment, so a difference between these arms may be one between "
        "environments: torch 2.14.0 against 2.15.0." in notes
    )
    assert any("compare them within one machine and run only" in note for note in notes)
    assert len(notes) == len(set(notes))


def test_environments_that_arms_share_are_mixed(tmp_path: Path) -> None:
    for norm, finals in (("none", NONE), ("batch", BATCH)):
        make_arm(tmp_path, norm, finals)
        make_run(tmp_path / f"{norm}-x", norm=norm, seed=9, environment={"torch": "2.14.0"})
    notes = only(compare([tmp_path])).notes
    assert "The runs come from different environments: torch 2.15.0, 2.14.0." in notes


@pytest.mark.parametrize(("seeds", "told"), [(4, False), (5, True)])
def test_seeds_are_planned_from_five_pairs_on(tmp_path: Path, seeds: int, told: bool) -> None:
    make_arm(tmp_path, "none", NONE[:seeds])
    make_arm(tmp_path, "batch", [a + 0.0001 * (-1) ** i for i, a in enumerate(NONE[:seeds])])
    assert any("Seeds an arm needs" in note for note in only(compare([tmp_path])).notes) == told


def test_two_pairs_decide_nothing(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", [0.90, 0.901])
    make_arm(tmp_path, "batch", [0.98, 0.98101])
    section = only(compare([tmp_path]))
    assert row(section, "batch").vs_baseline["test_accuracy"].p is None
    assert "batch: a difference of fewer than 3 pairs of seeds decides nothing, so it has no p." in section.notes


def test_the_sampling_error_of_the_test_set_is_said_where_it_is_larger(tmp_path: Path) -> None:
    finals = [357 / 360, 358 / 360, 356 / 360]
    make_arm(tmp_path / "few", "none", finals, data="digits")
    (note,) = [note for note in only(compare([tmp_path / "few"])).notes if "same 360 test images" in note]
    assert note.endswith("is known to ± 1 points only.")  # 0.9 by 1.96 sqrt(p (1 - p) / n), 1.1 by Wilson
    make_arm(tmp_path / "many", "none", [0.95, 0.97, 0.99])  # of 10,000 images, which vary more than these tell
    assert not any("test images" in note for note in only(compare([tmp_path / "many"])).notes)


def test_environments_are_listed_once(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE)
    assert len(only(compare([tmp_path])).environments) == 1


# Metrics


def test_every_metric_is_declared_in_full(tmp_path: Path) -> None:
    run = read_runs([make_run(tmp_path / "a")])[0][0]
    assert run.summary is not None
    terms = [f"term_{cause}_kl" for cause in ("batch_noise", "biased_variance", "initial_statistics", "moving_average")]
    steps = len(run.summary["curve"]["step"])
    curve = {f"test.{name}": [1e-4] * steps for name in (*terms, "size_flips", "size_error")} | {
        "train.samples_needed": [64.0] * steps
    }
    affine = {"gamma_drift": 0.1, "beta_max": 0.2}
    read = {
        "landscape": ("loss_range", "grad_change", "beta_smooth", "ics"),
        "curvature": ("lambda_max", "stable_rate"),
        "activations": ("drift_index",),
        "statistics": ("mean_drift_1", "mean_drift_10", "drift_slope", "input_drift", "error_slope", "variance_shift"),
        "gradients": ("gradient_slope", "gradient_noise", "effective_rate", "euler_residual", "bias_gradient"),
    }
    shares = (
        "norm_share", "norm_forward_share", "norm_backward_share", "collectives", "exchanged_kb", "wait_ms"
    )  # fmt: skip
    meters = {name: {"curve": {figure: [0.1, 0.2] for figure in figures}} for name, figures in read.items()}
    more = {
        "meters": meters,
        "bench": {"ratio": 1.1, "epoch_ms": 9.0} | dict.fromkeys(shares, 0.1),
        "affine": affine,
        "check": 1e-9,
        "curve": run.summary["curve"] | curve,
    }
    for name, metric in metrics.items():
        assert metric.name == name
        assert metric.meaning.strip()
        assert "\n" not in metric.meaning
        assert metric.derive(run.summary | more, 0.98) is not None, name


def without_new_keys(run: Path) -> Path:
    """Make a run one of an older bnlab, which had no `measure` and recorded less."""
    for name in ("summary.json", "status.json"):
        document = json.loads((run / name).read_text())
        document["config"].pop("measure", None)
        for key in ("layers", "discrepancy_seconds", "discrepancy_share"):
            document.pop(key, None)
        for key in ("kl", "logit_rms", "ece", "mate_noise"):
            document.get("curve", {}).pop(f"test.{key}", None)
        (run / name).write_text(json.dumps(document))
    return run


NEW = ("ece", "kl", "logit_rms", "mate_noise", "mean_z", "log_std_ratio", "discrepancy_share")


def test_the_discrepancy_is_read_from_the_summary(tmp_path: Path) -> None:
    summary = read_runs([make_run(tmp_path / "a")])[0][0].summary
    assert summary is not None
    found = {name: metrics[name].derive(summary) for name in NEW}
    assert found == {
        "ece": 0.008,
        "kl": 0.004,
        "logit_rms": 0.06,
        "mate_noise": 0.07,
        "mean_z": 0.02,
        "log_std_ratio": -0.04,
        "discrepancy_share": 0.05,
    }


def test_a_run_of_an_older_bnlab_is_compared_with_what_it_has(tmp_path: Path) -> None:
    without_new_keys(make_run(tmp_path / "old", norm="batch"))
    make_run(tmp_path / "new", norm="layer")
    runs, skipped = read_runs([tmp_path])
    assert not skipped
    (old,) = (run for run in runs if run.folder.name == "old")
    assert old.summary is not None
    assert {name: metrics[name].derive(old.summary) for name in NEW} == dict.fromkeys(NEW)
    assert metrics["acc_gap"].derive(old.summary) == -0.01
    (part,) = compare([tmp_path], metrics=["kl", "mean_z"]).sections
    assert {row.label: row.metrics["kl"].value for row in part.rows} == {"batch": math.nan, "layer": 0.004}


def test_arms_of_other_seeds_than_the_baselines_have_no_difference_and_that_is_said(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / f"none{seed}", norm="none", seed=seed + 3)
        make_run(tmp_path / f"batch{seed}", norm="batch", seed=seed)
    section = only(compare([tmp_path]))
    assert all(not row.vs_baseline for row in section.rows if row.label == "batch")
    assert "batch: no difference, since no baseline shares a seed and the other settings." in section.notes


def test_arms_of_which_none_reached_the_target_are_not_said_to_have_other_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        for norm in ("none", "batch"):
            make_run(tmp_path / f"{norm}{seed}", norm=norm, seed=seed)
    section = only(compare([tmp_path], metrics=["steps_to_target"], target=0.99))
    assert all(not row.vs_baseline for row in section.rows)
    assert "batch: no difference, since no seed of both has a result." in section.notes
    assert not any("shares a seed" in note for note in section.notes)


def test_runs_from_before_a_key_are_in_the_arm_of_its_default(tmp_path: Path) -> None:
    new = {"trainer.accumulate": 1, "norm.momentum": 0.1, "optim.only": "all"}
    make_run(tmp_path / "old", norm="batch")
    make_run(tmp_path / "new", norm="batch", seed=1, config=new)
    make_run(tmp_path / "other", norm="batch", seed=1, config=new | {"trainer.accumulate": 2})
    make_run(tmp_path / "layer", norm="layer")  # which has no momentum
    (section,) = compare([tmp_path]).sections
    assert {row.label: len(row.runs) for row in section.rows} == {
        "norm=batch accumulate=1": 2,
        "norm=batch accumulate=2": 1,
        "norm=layer accumulate=1": 1,
    }


@pytest.mark.parametrize("junk", [None, 7, "x", [], {"1": 7}, {"1": {"mean_z": "x"}}, {"1": {"mean_z": None}}])
def test_layers_of_any_json_are_no_figure(tmp_path: Path, junk: object) -> None:
    runs, _ = read_runs([make_run(tmp_path / "a", summary={"layers": junk, "discrepancy_share": junk})])
    assert runs[0].summary is not None
    assert metrics["mean_z"].derive(runs[0].summary) is None
    assert metrics["log_std_ratio"].derive(runs[0].summary) is None


def test_derivations(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", test_accuracy=[0.1, 0.7, 0.8, 0.75], valid_accuracy=[0.1, 0.9, 0.9, 0.8])
    summary = read_runs([folder])[0][0].summary
    assert summary is not None
    derived = {name: metric.derive(summary, 0.85) for name, metric in metrics.items()}
    assert derived["test_accuracy"] == 0.75
    assert derived["test_at_best_valid"] == 0.7, "the first of the best validation accuracies"
    assert derived["steps_to_target"] == 100.0
    assert derived["epochs_to_target"] == 1.0
    assert derived["seconds_to_target"] == pytest.approx(0.2)
    assert derived["area_under_curve"] == pytest.approx((0.5 + 0.9 + 0.85) / 3)
    assert derived["num_parameters"] == 1234.0
    assert find_metric("steps_to_target").derive(summary, 0.95) == Censored(300.0)
    assert find_metric("steps_to_target").derive(summary, None) is None
    assert find_metric("steps_to_target").column(0.98) == "steps to 98 %"
    bare = {"curve": {}, "step_ms": None, "train_seconds": "soon", "num_parameters": 10**400}
    assert {metric.derive(bare, 0.9) for metric in metrics.values()} == {None, math.inf}


def test_one_arm_has_no_order_that_a_learning_rate_could_change(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE)
    assert not any("All arms ran at" in note for note in only(compare([tmp_path])).notes)


def test_equal_differences_have_no_p_and_say_so(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", [0.90, 0.91, 0.92])
    make_arm(tmp_path, "batch", [0.9028, 0.9128, 0.9228])
    make_arm(tmp_path, "layer", [0.90, 0.91, 0.92])
    make_arm(tmp_path, "ghost", [0.91, 0.91, 0.92])
    notes = only(compare([tmp_path])).notes
    assert "batch: the differences are equal in every seed, too few to give an interval or p." in notes


def test_a_mean_difference_that_is_only_rounding_is_zero(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", [346 / 360, 301 / 360, 333 / 360])
    make_arm(tmp_path, "batch", [350 / 360, 309 / 360, 321 / 360])  # 4, 8 and -12 more of 360
    difference = row(only(compare([tmp_path])), "batch").vs_baseline["test_accuracy"]
    assert (difference.value, difference.p) == (0.0, 1.0)


@pytest.mark.parametrize("steps", [(20, 200), (20, None)])
def test_no_epochs_stand_above_runs_of_different_steps(tmp_path: Path, steps: tuple[int, int | None]) -> None:
    for count in steps:
        make_run(tmp_path / str(count), config={"trainer.steps": count})
    for by in ([], ["norm"]):
        section = only(compare([tmp_path], by=by))
        assert not any("epoch" in part or " step" in part for part in heading(section))


# Broken and hostile folders


def test_what_is_no_run_folder_names_the_runs_below_it(tmp_path: Path) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            read_documents(folder)
        return str(caught.value)

    for i in range(12):
        make_run(tmp_path / "many" / str(i), seed=i)
    many = tmp_path / "many"
    assert message(many) == f"{many}: no run here; it holds 12 runs\ngive one of them: {many / '0'} to {many / '11'}"
    make_run(tmp_path / "few" / "bench" / "none")
    few = tmp_path / "few"
    assert message(few) == f"{few}: no run here; it holds 1 run\ngive that one: {few / 'bench' / 'none'}"
    make_run(few / "bench" / "batch")
    assert message(few).endswith(f"give one of them: {few / 'bench' / 'batch'} or {few / 'bench' / 'none'}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, what in (("empty", "no run here"), ("file", "is not a folder"), ("missing", "does not exist")):
        assert message(tmp_path / name).startswith(f"{tmp_path / name}: {what}")
        assert "`bnlab runs` lists them" in message(tmp_path / name)


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no runs in"):
        compare([tmp_path])
    with pytest.raises(ConfigError, match="does not exist"):
        compare([tmp_path / "missing"])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a folder"):
        compare([tmp_path / "file"])


def test_a_run_a_sweep_and_a_folder_of_sweeps_are_found(tmp_path: Path) -> None:
    for i in range(3):
        make_run(tmp_path / "sweep" / str(i), seed=i)
    make_run(tmp_path / "alone", seed=3)
    (tmp_path / "empty").mkdir()
    for path, count in ((tmp_path, 4), (tmp_path / "sweep", 3), (tmp_path / "alone", 1)):
        runs, skipped = read_runs([path])
        assert (len(runs), skipped) == (count, [])
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    assert len(read_runs([link, tmp_path])[0]) == 4


@pytest.mark.parametrize("name", STATUS)
def test_broken_status_is_skipped_with_a_reason(tmp_path: Path, name: str) -> None:
    make_run(tmp_path / "good")
    (tmp_path / name).mkdir()
    (tmp_path / name / "status.json").write_text(STATUS[name])
    comparison = compare([tmp_path])
    assert only(comparison).rows[0].n == 1
    [(folder, reason)] = comparison.skipped
    assert folder == tmp_path / name
    assert reason
    assert reason.isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"curve": None},
        {"curve": {"step": 3}},
        {"curve": {"step": ["a"]}},
        {"curve": {"step": [[]]}},
        {"curve": {"step": [10**400]}},
        {"curve": {"step": [0, 1], "test.accuracy": [0.1]}},
        {"curve": {"\x1b[2J": "x"}},
        {"state": "running"},
        {"identity": "other"},
        {"schema": 7},
        {"config": {"seed": 0, "model": {"widths": [[1]]}}},
    ],
)
def test_broken_summary_is_skipped_with_a_reason(tmp_path: Path, changes: dict[str, object]) -> None:
    make_run(tmp_path / "bad", summary=changes)
    comparison = compare([tmp_path])
    assert comparison.sections == []
    assert [folder.name for folder, _ in comparison.skipped] == ["bad"]
    assert comparison.skipped[0][1].isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"curve": {}},
        {"step_ms": [1], "train_seconds": "x", "images_per_second": None, "num_parameters": True},
        {"environment": []},
        {"environment": {"data_fingerprint": ["a"], "torch": {"x": [1]}}},
        {"config": {"seed": 0, "norm": {"name": "\x1b[2J[red]"}, "optim": {"lr": 10**300}}},
        {"config": {"seed": 10**30, "data": {"name": None}}},
        {"curve": {"step": [0, 1], "valid.accuracy": [None, 1e999], "test.accuracy": [0.5, None]}},
    ],
)
def test_odd_but_readable_summaries_are_compared(tmp_path: Path, changes: dict[str, object]) -> None:
    make_run(tmp_path / "odd", summary=changes)
    make_run(tmp_path / "good", norm="none", seed=1)
    comparison = compare([tmp_path], metrics=list(metrics), target=0.9)
    assert comparison.skipped == []
    assert sum(r.n for section in comparison.sections for r in section.rows) == 2


def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good")
    for name in ("fifo", "link", "folder", "large", "loop", "orphan", "\x1b[2J"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "fifo" / "status.json")
    (tmp_path / "link" / "status.json").symlink_to(good / "status.json")
    (tmp_path / "folder" / "status.json").mkdir()
    with open(tmp_path / "large" / "status.json", "wb") as file:
        file.truncate(LARGEST_FILE + 1)
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop")
    (tmp_path / "etc").symlink_to("/etc")
    (tmp_path / "orphan" / "summary.json").write_text("{}")
    (tmp_path / "\x1b[2J" / "status.json").write_text("x")
    assert len(read_runs([tmp_path])[0]) == 1
    assert reasons(tmp_path) == {
        "fifo": "status.json is not a regular file",
        "link": "status.json is a symbolic link",
        "folder": "status.json is not a regular file",
        "large": "status.json is larger than 8 MB",
        "again": "a link to a folder is not followed",
        "etc": "a link to a folder is not followed",
        "orphan": "status.json is missing",
        "\x1b[2J": "status.json is not JSON",
    }


# Layers


def test_a_comparison_needs_no_heavy_import(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE)
    make_arm(tmp_path, "batch", BATCH)
    program = (
        "import sys; from pathlib import Path; from bnlab.compare.comparison import compare\n"
        f"compare([Path({str(tmp_path)!r})])\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'pandas', 'rich', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_initial_statistics_left_are_noted(tmp_path: Path) -> None:
    make_arm(tmp_path, "none", NONE, summary={"initial_share": None})
    make_arm(tmp_path, "batch", BATCH, summary={"initial_share": {"momentum": 0.01, "share_left": 0.125}})
    make_arm(tmp_path, "ghost", BATCH, summary={"initial_share": {"momentum": 0.1, "share_left": 0.001}})
    (note,) = [n for n in only(compare([tmp_path])).notes if "initial mean 0 and variance 1" in n]
    assert note.endswith(": batch 12 %.")


@pytest.mark.parametrize(("stats_used", "told"), [("batch", False), ("population", False), ("mixed", True)])
def test_initial_statistics_are_noted_where_evaluation_uses_them(tmp_path: Path, stats_used: str, told: bool) -> None:
    share = {"initial_share": {"momentum": 0.01, "share_left": 0.125}}
    make_arm(tmp_path, "batch", BATCH, summary=share, config={"eval.stats": stats_used})
    assert any("initial mean 0 and variance 1" in note for note in only(compare([tmp_path])).notes) == told
    assert bool(warnings_of(share, stats_used)) == told


def test_statistics_of_evaluation_are_compared_with_the_running_ones(tmp_path: Path) -> None:
    for stats_used in ("batch", "precise", "running"):
        make_arm(tmp_path, "batch", BATCH, config={"eval.stats": stats_used})
    assert [row.label for row in only(compare([tmp_path])).rows if row.is_baseline] == ["running"]


def test_times_of_runs_that_ran_at_once_are_marked_and_decide_nothing(tmp_path: Path) -> None:
    for place, apart in (("at_once", 1), ("in_turn", 10)):
        for number, (norm, seed) in enumerate(itertools.product(("none", "batch"), range(3))):
            took = 2.0 + (2.0 + 0.01 * seed) * (norm == "batch")
            order = 10**18 + int(number * apart * 1e8)
            folder = tmp_path / place / str(number)
            make_run(folder, norm=norm, seed=seed, step_ms=took, order=order, summary={"wall_seconds": 1.0})
    found = {
        place: only(compare([tmp_path / place], metrics=["step_ms", "test_accuracy"]))
        for place in ("at_once", "in_turn")
    }
    assert [row.metrics["step_ms"].is_beside for row in found["at_once"].rows] == [True, True]
    assert not any(row.metrics["test_accuracy"].is_beside for row in found["at_once"].rows)
    assert not any(row.metrics["step_ms"].is_beside for row in found["in_turn"].rows)
    verdicts = {place: section.rows[1].verdicts["step_ms"] for place, section in found.items()}
    assert verdicts == {"at_once": "undecided", "in_turn": "worse"}
    assert any("‡" in note for note in found["at_once"].notes)
    for place, whether in (("at_once", True), ("in_turn", False)):
        told = compare([tmp_path / place], metrics=["step_ms", "test_accuracy"])
        in_json = json.loads(FORMATS["json"](told))["rows"][1]["metrics"]
        in_csv = {line["metric"]: line for line in csv.DictReader(FORMATS["csv"](told).splitlines())}
        for name, expected in (("step_ms", whether), ("test_accuracy", False)):
            assert in_json[name]["at_once"] is expected
            assert in_csv[name]["at_once"] == str(expected).lower()
