"""`--gate`: sentences that a comparison or a bench must meet, with the exit code that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_cli import bnlab
from helpers_runs import make_run

from bnlab.record.sweep_record import SweepRecord

GHOST = "test_accuracy[norm=ghost] - test_accuracy[norm=batch]"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, (ghost, batch) in enumerate([(0.952, 0.950), (0.961, 0.958), (0.955, 0.957), (0.952, 0.951)]):
        make_run(tmp_path / "runs" / f"g{seed}", norm="ghost", seed=seed, test_accuracy=(0.1, ghost))
        make_run(tmp_path / "runs" / f"b{seed}", norm="batch", seed=seed, test_accuracy=(0.1, batch))
    return tmp_path


@pytest.mark.parametrize(
    ("sentence", "code", "said"),
    [
        (f"{GHOST} > -0.5", 0, f"gate met: {GHOST} > -0.5: +0.10 points (-0.24 to +0.44), 4 seeds"),
        (f"{GHOST} > 0.5", 1, f"gate not met: {GHOST} > 0.5: +0.10 points"),
        (f"{GHOST} > 0.2", 3, "the interval includes 0.2; about"),
        ("test_accuracy[norm=ghost] > 90", 0, "gate met: test_accuracy[norm=ghost] > 90: 95.5 % (94.8 to 96.2)"),
    ],
)
def test_exit_code_and_sentence(runs: Path, sentence: str, code: int, said: str) -> None:
    done = bnlab("compare", "runs", "--gate", sentence, cwd=runs)
    assert done.returncode == code, done.stderr
    assert said in done.stdout


def test_of_several_the_worst_counts(runs: Path) -> None:
    gates = ["--gate", f"{GHOST} > -0.5", "--gate", f"{GHOST} > 0.2"]
    assert bnlab("compare", "runs", *gates, cwd=runs).returncode == 3
    done = bnlab("compare", "runs", *gates, "--gate", f"{GHOST} > 0.5", "--format", "json", cwd=runs)
    assert done.returncode == 1
    assert done.stdout.startswith("{")  # and nothing but json
    assert done.stderr.count("gate ") == 3


def test_looks_at_a_sweep_that_was_extended_are_counted(tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "s"
    for seed, ghost in enumerate([0.954, 0.950, 0.953, 0.951, 0.955]):
        make_run(sweep / f"{2 * seed}", norm="ghost", seed=seed, test_accuracy=(0.1, ghost))
        make_run(sweep / f"{2 * seed + 1}", norm="batch", seed=seed, test_accuracy=(0.1, 0.950))
    gate = ["compare", "runs/s", "--gate", f"{GHOST} > 0"]
    assert bnlab(*gate, cwd=tmp_path).returncode == 0
    SweepRecord((), None, False, seeds=(3, 4, 5)).write(sweep)
    done = bnlab(*gate, cwd=tmp_path)
    assert done.returncode == 3
    assert "looks at 3, 4, 5 seeds" in done.stdout


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("test_accuracy[norm=gost] > 1", "norm=gost: no run has it\nnorm.name is batch, ghost"),
        ("test_accuracy > 1", "means 2 arms, and must mean one"),
        ("test_accuracy[norm=ghost]", "must have a comparison"),
        ("$(touch x) > 1", "must have a metric"),
    ],
)
def test_a_gate_that_means_nothing_here_is_refused(runs: Path, sentence: str, said: str) -> None:
    done = bnlab("compare", "runs", "--gate", sentence, cwd=runs)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bench_is_gated_and_checked_before_it_starts(tmp_path: Path) -> None:
    small = ["model=mlp", "model.widths=[8]", "norm=none,batch", "trainer.threads=1", "bench.seconds=0.5"]
    wrong = bnlab("bench", *small, "--gate", "step_ratio[norm=ghost] < 1.3", cwd=tmp_path)
    assert (wrong.returncode, (tmp_path / "runs").exists()) == (2, False)
    assert "norm.name is none, batch" in wrong.stderr
    wrong = bnlab("bench", *small, "--gate", "norm_share[norm=batch] < 5", cwd=tmp_path)
    assert (wrong.returncode, (tmp_path / "runs").exists()) == (2, False)
    assert "is measured with bench.mode=profile, and this is steps" in wrong.stderr
    met = bnlab("bench", *small, "--gate", "step_ratio[norm=batch] < 1000", cwd=tmp_path)
    word = {0: "met", 3: "undecided"}[met.returncode]  # the latter on a machine that does something else
    assert f"gate {word}: step_ratio[norm=batch] < 1000: " in met.stdout
    assert bnlab("bench", "--layers", "--gate", "step_ratio < 2", cwd=tmp_path).returncode == 2
