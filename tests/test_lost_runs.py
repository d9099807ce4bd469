"""Comparisons in which runs diverged or failed: nothing is as if they had never been."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from helpers_runs import bnlab_compare, make_run

from bnlab.compare.comparison import compare
from bnlab.compare.result import Row, Section

FINALS = [0.97, 0.972, 0.969, 0.974, 0.971]


def arm(root: Path, norm: str, finals: list[float], diverged: int = 0, **options: object) -> None:
    """Write a run a seed; of the last `diverged` only the first evaluation was made."""
    for seed, final in enumerate(finals):
        lost = seed >= len(finals) - diverged
        make_run(
            root / f"{norm}-{seed}",
            norm=norm,
            seed=seed,
            test_accuracy=[0.1] if lost else [0.1, final - 0.02, final],
            state="diverged" if lost else "done",
            **options,  # type: ignore[arg-type]
        )


def only(root: Path, **options: object) -> Section:
    (section,) = compare([root], **options).sections  # type: ignore[arg-type]
    return section


def row(section: Section, label: str) -> Row:
    return next(row for row in section.rows if row.label == label)


def test_a_run_that_diverged_never_arrives(tmp_path: Path) -> None:
    arm(tmp_path, "none", FINALS)
    arm(tmp_path, "batch", FINALS, diverged=3)
    section = only(tmp_path, sort="steps_to_target", target=0.96)
    assert [row.label for row in section.rows] == ["none", "batch"]
    batch = row(section, "batch").metrics["steps_to_target"]
    assert math.isnan(batch.value)
    assert (batch.n, batch.num_missed, batch.limit) == (5, 3, 200.0)
    saved = row(section, "batch").vs_baseline["steps_to_target"]
    assert (saved.value, saved.n) == (0.0, 5), "it counts as the 200 steps after which the others ended"
    assert "> 200 (2 of 5)" in bnlab_compare(str(tmp_path), "--target", "0.96").stdout


def test_what_was_reached_before_the_loss_diverged_was_reached(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / str(seed), seed=seed, test_accuracy=[0.1, 0.99, 0.2], state="diverged")
    found = only(tmp_path).rows[0].metrics["steps_to_target"]
    assert (found.value, found.since, found.num_missed) == (100.0, 0.0, 0)


def test_no_survivors_at_all(tmp_path: Path) -> None:
    arm(tmp_path, "none", FINALS)
    arm(tmp_path, "batch", FINALS, diverged=5)
    section = only(tmp_path, target=0.9)
    found = row(section, "batch").metrics["steps_to_target"]
    assert math.isnan(found.value)
    assert (found.n, found.num_missed) == (5, 5)
    assert row(section, "batch").vs_baseline["steps_to_target"].value > 0
    assert "test_accuracy" not in row(section, "batch").vs_baseline


def test_means_of_survivors_are_marked_counted_and_ranked_behind(tmp_path: Path) -> None:
    arm(tmp_path, "none", FINALS)
    arm(tmp_path, "batch", [a + 0.02 for a in FINALS], diverged=2)
    section = only(tmp_path, sort="test_accuracy")
    assert [row.label for row in section.rows] == ["none", "batch"]
    assert row(section, "batch").metrics["test_accuracy"].num_lost == 2
    assert row(section, "none").metrics["test_accuracy"].num_lost == 0
    assert any("batch: mean of 3 of 5 runs; 2 diverged." in note for note in section.notes)
    for form in ("table", "plain", "md"):
        lines = bnlab_compare(str(tmp_path), "--format", form).stdout.splitlines()
        starts = {norm: [line for line in lines if line.strip("| ").startswith(norm)] for norm in ("batch", "none")}
        first = {
            norm: next(li for li in each if li.split()[1] not in ("learns", "is")) for norm, each in starts.items()
        }
        assert "†" in first["batch"]
        assert "†" not in first["none"]
    assert (
        json.loads(bnlab_compare(str(tmp_path), "--format", "json").stdout)["rows"][1]["metrics"]["test_accuracy"][
            "num_lost"
        ]
        == 2
    )


@pytest.mark.parametrize(
    ("lost", "batch_is_better", "decided"),
    [("batch", True, False), ("batch", False, True), ("none", True, True), ("none", False, False), ("", True, True)],
)
def test_survivors_decide_nothing_in_their_own_favour(
    tmp_path: Path, lost: str, batch_is_better: bool, decided: bool
) -> None:
    by = 0.02 if batch_is_better else -0.02
    arm(tmp_path, "none", FINALS, diverged=2 * (lost == "none"))
    shifted = [a + by + 0.001 * (-1) ** i for i, a in enumerate(FINALS)]
    arm(tmp_path, "batch", shifted, diverged=2 * (lost == "batch"))
    section = only(tmp_path)
    p = row(section, "batch").vs_baseline["test_accuracy"].p
    assert (p is not None and p < 0.05) == decided
    assert any("the side that looks better lost runs" in note for note in section.notes) == (not decided)


def test_a_finished_run_without_a_figure_is_lost_too(tmp_path: Path) -> None:
    for norm in ("none", "batch"):
        for seed, final in enumerate(FINALS):
            value = None if (norm, seed) == ("batch", 4) else final + 0.02 * (norm == "batch") + 0.001 * (seed % 2)
            make_run(tmp_path / f"{norm}{seed}", norm=norm, seed=seed, test_accuracy=[0.1, value])
    difference = row(only(tmp_path), "batch").vs_baseline["test_accuracy"]
    assert (difference.n, difference.p, difference.num_lost) == (4, None, 1)


def test_times_show_the_grid_of_evaluations(tmp_path: Path) -> None:
    arm(tmp_path, "none", FINALS)
    make_run(tmp_path / "one", norm="batch", test_accuracy=[0.1, 0.99])
    shown = bnlab_compare(str(tmp_path), "--target", "0.5", "--format", "plain").stdout
    assert [line.count("100 (0–100]") for line in shown.splitlines() if line[:5].strip() in ("none", "batch")] == [1, 1]


def test_a_choice_from_more_settings_is_corrected(tmp_path: Path) -> None:
    for norm, rates in (("none", [0.1]), ("batch", [0.1, 0.2, 0.3, 0.4])):
        for rate in rates:
            for seed, final in enumerate(FINALS):
                better = (norm == "batch") * (0.01 + 0.002 * (-1) ** seed) - 0.1 * (rate > 0.1)
                make_run(
                    tmp_path / f"{norm}{rate}{seed}",
                    norm=norm,
                    seed=seed,
                    test_accuracy=[0.1, final + better],
                    config={"optim.lr": rate},
                )
    alone = row(only(tmp_path, where=["lr=0.1"]), "batch").vs_baseline["test_accuracy"].p
    chosen = row(only(tmp_path, best_of=["lr"]), "batch").vs_baseline["test_accuracy"].p
    assert alone is not None
    assert chosen == pytest.approx(4 * alone)
