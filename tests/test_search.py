"""A search with Hydra's Optuna sweeper: failed jobs are failed trials, and what it looks for is validation accuracy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers_cli import ROOT
from helpers_launchers import QUICK, run, settings

from bnlab.config.compose import compose
from bnlab.errors import EnvironmentFault
from bnlab.runner import launchers

CHOSEN = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler.seed=1"]


def found(place: Path, best: str) -> dict[str, float]:
    """Return what the sweeper wrote down as its best."""
    (path,) = place.glob("runs/*/optimization_results.yaml")
    rows = dict(re.findall(r"^ *([\w.]+): (\S+)$", path.read_text(), re.MULTILINE))
    return {name: float(rows[name]) for name in (best, "best_value")}


def scores(place: Path, key: str) -> dict[float, float]:
    """Return value of the key -> validation accuracy, of the jobs that were done."""
    summaries = [json.loads(path.read_text()) for path in place.glob("runs/*/*/summary.json")]
    group, name = key.split(".")
    return {
        found["config"][group][name]: found["curve"]["valid.accuracy"][-1]
        for found in summaries
        if found["state"] == "done"
    }


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_search_finds_the_highest_validation_accuracy(tmp_path: Path, launcher: str) -> None:
    swept = [f"hydra/launcher={launcher}", *CHOSEN, "optim.lr=interval(0.01,0.3)"]
    done = run(tmp_path, settings(tmp_path), "train", "-m", *swept, *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  done  lr=0.") == 6
    by_rate = scores(tmp_path, "optim.lr")
    assert found(tmp_path, "optim.lr") == {
        "optim.lr": max(by_rate, key=by_rate.__getitem__),
        "best_value": max(by_rate.values()),
    }
    assert "6 of 6 jobs done" in done.stderr
    assert len(re.findall(r"^\d/6 optim\.lr=0\.\d+: done, test ", done.stderr, re.MULTILINE)) == 6, done.stderr
    assert "study" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_search_goes_on_after_jobs_that_fail_or_diverge(tmp_path: Path) -> None:
    known = settings(tmp_path, BNLAB_TEST_FAULTS=json.dumps({"1": ["raise", 5, None], "2": ["kill", 5, None]}))
    known["PYTHONPATH"] += f":{ROOT / 'tests/faults'}"
    swept = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=10", "hydra.sweeper.sampler.seed=1"]
    done = run(tmp_path, known, "train", "-m", *swept, "seed=choice(0,1,2)", "optim.lr=choice(0.1,1e12)", *QUICK)
    assert done.returncode == 1, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/status.json")]
    ended = [(record["config"]["seed"], record["config"]["optim"]["lr"], record["state"]) for record in records]
    meant = {1: "failed", 2: "killed"}
    assert len(ended) == 10
    assert all(state == meant.get(seed, "done" if rate == 0.1 else "diverged") for seed, rate, state in ended)
    assert {state for *_, state in ended} == {"done", "diverged", "failed", "killed"}
    assert found(tmp_path, "optim.lr") == {"optim.lr": 0.1, "best_value": scores(tmp_path, "optim.lr")[0.1]}
    assert "Failed" not in done.stderr
    (folder,) = tmp_path.glob("runs/2*")
    again = run(tmp_path, settings(tmp_path), "resume", str(folder))
    assert "  failed  " not in again.stdout  # the jobs themselves are finished as those of a sweep
    assert "  killed  " not in again.stdout


@pytest.mark.slow
def test_a_search_without_one_good_job_says_so(tmp_path: Path) -> None:
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optim.lr=interval(1e12,1e13)"]
    done = run(tmp_path, settings(tmp_path), "train", "-m", *words, *QUICK)
    assert done.returncode == 1
    assert "0 of 2 jobs done" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_search_is_for_the_highest_unless_its_user_says_otherwise() -> None:
    def direction(*more: str) -> str:
        got = launchers.settings(["hydra/sweeper=optuna", *more], "basic", "optuna", 1, None)
        assert got.trials == 20
        value = compose(got.lines, True).hydra.sweeper.direction
        return getattr(value, "name", value)

    assert direction() == "maximize"
    assert direction("hydra.sweeper.direction=minimize") == "minimize"


def test_a_stored_study_is_refused_where_it_cannot_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna 2, which comes with the sweeper for Hydra 1.3, knows SQLAlchemy 1 only; later ones know both."""
    words = ["hydra/sweeper=optuna", "hydra.sweeper.storage='sqlite:///study.db'"]
    installed = {"optuna": "2.10.1", "sqlalchemy": "2.0.58"}
    monkeypatch.setattr(launchers, "version", installed.__getitem__)
    with pytest.raises(EnvironmentFault, match=r"cannot store a study with SQLAlchemy 2\npip install 'sqlalchemy<2'"):
        launchers.machinery(words)
    for installed["optuna"], installed["sqlalchemy"] in (("2.10.1", "1.4.54"), ("4.9.0", "2.0.58"), ("5.0.0", "2.1.9")):
        assert launchers.machinery(words) == ("basic", "optuna")
