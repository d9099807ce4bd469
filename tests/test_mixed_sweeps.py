"""Sweeps over strategies of different keys, and strategies that do not fit a cell of their sweep."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from helpers_cli import QUICK, bnlab

from bnlab.claims.evaluate import evidence_of
from bnlab.claims.evidence import Count
from bnlab.claims.language import parse_sentence
from bnlab.config import compose
from bnlab.errors import ConfigError
from bnlab.norms.strategy import strategies
from bnlab.record.read import read_runs

TINY = [line for line in QUICK if not line.startswith(("trainer.steps", "data.batch"))] + ["trainer.steps=5"]
REASON = "data.batch_size=1: norm=batch has one value a channel in model=mlp"


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["batch", "ghost"], {"norm.size": ["8", "16"]}),
        (["ghost", "batch", "none"], {"norm.size": ["16"], "seed": ["0", "1"]}),
        (["batch", "renorm", "group"], {"norm.momentum": ["0.1", "0.2"], "norm.groups": ["2", "4"], "seed": ["3"]}),
        (["ghost", "layer"], {"optim.lr": ["0.1", "0.2"], "norm.size": ["4", "8"], "norm.eps": ["0.1", "0.2"]}),
    ],
)
def test_a_key_is_for_the_strategies_that_have_it(names: list[str], keys: dict[str, list[str]]) -> None:
    expected = set()
    for name, *values in itertools.product(names, *keys.values()):
        own = {f"norm.{field.name}" for field in dataclasses.fields(strategies[name])}
        kept = (f"{key}={value}" for key, value in zip(keys, values, strict=True) if key[:5] != "norm." or key in own)
        expected.add(frozenset([f"norm={name}", *kept]))
    lines = [f"norm={','.join(names)}", *(f"{key}={','.join(values)}" for key, values in keys.items())]
    planned = compose.planned(lines, multirun=True)
    assert Counter(frozenset(of_job) for of_job, _ in planned) == Counter(expected)
    for of_job, tree in planned:
        given = dict(line.split("=") for line in of_job)
        assert tree["norm"]["name"] == given["norm"]
        assert all(str(tree["norm"][key[5:]]) == value for key, value in given.items() if key.startswith("norm."))


def test_a_key_of_none_of_them_is_refused_and_jobs_are_counted_without_being_written_out() -> None:
    with pytest.raises(ConfigError, match=r"norm\.size: the chosen norm has no such key"):
        compose.planned(["norm=batch,layer", "norm.size=8,16"], multirun=True)
    with pytest.raises(ConfigError, match=r"norm\.sise: no such key"):
        compose.planned(["norm=batch,ghost", "norm.sise=8"], multirun=True)
    with pytest.raises(ConfigError, match="comes to 12,002 jobs"):
        compose.planned(["norm=batch,ghost", "norm.size=range(1,6001)", "seed=0,1"], multirun=True)


def test_a_file_may_sweep_strategies_of_different_keys(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    sweep = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      norm: batch,ghost\n      norm.size: 8,16\n"
    (tmp_path / "experiment" / "mixed.yaml").write_text(sweep)

    def sizes(*more: str) -> list[object]:
        jobs = compose.jobs(["+experiment=mixed", *more], True, tmp_path)
        return [(tree["norm"]["name"], tree["norm"].get("size")) for tree in jobs]

    assert sizes() == [("batch", None), ("ghost", 8), ("ghost", 16)]
    assert sizes("norm.size=4") == [("batch", None), ("ghost", 4)]
    assert sizes("norm=ghost,layer") == [("ghost", 8), ("ghost", 16), ("layer", None)]


def test_what_a_launcher_is_asked_for_has_no_key_of_a_strategy() -> None:
    assert compose.unswept(["norm=batch,ghost", "norm.size=16", "optim.lr=0.1", "seed=0,1"]) == ["optim.lr=0.1"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a strategy that does not fit at one of its two batch sizes; the folder of its command line."""
    place = tmp_path_factory.mktemp("mixed")
    sweep = ["norm=none,batch,ghost", "norm.size=4,8", "data.batch_size=1,16", "model.bias=false", "seed=0,1"]
    done = bnlab("train", "-m", *TINY, *sweep, "incompatible=record", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("refused: ") == 3
    assert f"refused: {REASON} (2 runs)" in done.stderr
    assert "10 of 16 jobs done, 6 refused; " in done.stderr
    return place


@pytest.mark.slow
def test_refused_runs_are_an_outcome_that_stays(mixed: Path) -> None:
    runs, _ = read_runs([mixed / "runs"])
    states = Counter((run.config["norm.name"], run.config["data.batch_size"], run.state) for run in runs)
    assert states == {
        ("none", 1, "done"): 2, ("none", 16, "done"): 2, ("batch", 1, "refused"): 2, ("batch", 16, "done"): 2,
        ("ghost", 1, "refused"): 4, ("ghost", 16, "done"): 4,
    }  # fmt: skip
    (folder,) = (mixed / "runs").glob("*sweep*")
    again = bnlab("resume", str(folder), "seed=0,1,2", "--dry-run", cwd=mixed, COLUMNS="200")
    assert again.returncode == 0
    jobs = [line.split(maxsplit=1)[1] for line in again.stdout.splitlines() if "seed=" in line]
    assert len(jobs) == 8
    assert all("seed=2" in line for line in jobs)


def test_compare_and_show_say_in_words_what_was_refused(mixed: Path) -> None:
    compared = bnlab("compare", "-f", "json", cwd=mixed)
    assert f"refused: {REASON} (2 runs)" in compared.stderr
    found = json.loads(compared.stdout)
    assert f"refused: {REASON} (2 runs)" in found["refused"]
    assert {(row["arm"]["norm.name"], row["arm"]["data.batch_size"], row["n"]) for row in found["rows"]} == {
        ("none", 1, 2), ("none", 16, 2), ("batch", 16, 2), ("ghost", 16, 2)
    }  # fmt: skip
    run = next(run for run in read_runs([mixed / "runs"])[0] if run.state == "refused")
    shown = " ".join(bnlab("show", str(run.folder), cwd=mixed).stdout.split())
    assert f"state refused, {run.error.splitlines()[0]}" in shown if run.error else False
    assert "run.log," not in shown
    only = bnlab("compare", str(run.folder), cwd=mixed)
    assert only.returncode == 1
    assert "no run was trained\nrefused: " in only.stderr


def test_a_refused_run_has_not_learned(mixed: Path) -> None:
    runs, _ = read_runs([mixed / "runs"])
    sentence = parse_sentence("rate(learned[norm=batch data.batch_size=1] == 1) >= 0.5")
    assert evidence_of(sentence.of, runs) == Count(0, 2)


def test_a_run_by_itself_may_be_refused_too(tmp_path: Path) -> None:
    done = bnlab("train", *TINY, "norm=batch", "data.batch_size=1", "incompatible=record", cwd=tmp_path)
    assert done.returncode == 0
    assert f"norm=batch seed=0: refused, {REASON}\nrefused: {REASON} (1 run)\n" in done.stderr
    assert "0 steps" not in done.stderr
    assert "  refused  norm=batch" in done.stdout


def test_where_it_is_not_asked_for_nothing_starts(tmp_path: Path) -> None:
    done = bnlab("train", "-m", *QUICK, "norm=none,batch", "data.batch_size=1", cwd=tmp_path)
    assert done.returncode == 2
    assert REASON in done.stderr
    assert not (tmp_path / "runs").exists()
    wrong = bnlab("train", *QUICK, "incompatible=recorded", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "incompatible=recorded: must be one of stop, record; did you mean record?" in wrong.stderr


def test_a_sweep_that_stops_when_it_is_decided_does_not_wait_for_what_was_refused(tmp_path: Path) -> None:
    sweep = ["norm=none,batch,layer", "data.batch_size=1", "seed=range(6)", "incompatible=record"]
    until = ["--until-decided", "--margin", "100", "--looks", "3"]
    done = bnlab("train", "-m", *TINY, *sweep, *until, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    states = Counter((run.config["norm.name"], run.state) for run in read_runs([tmp_path / "runs"])[0])
    assert states == {(name, state): 3 for name in ("none", "layer") for state in ("done", "not needed")} | {
        ("batch", "refused"): 3, ("batch", "not needed"): 3
    }  # fmt: skip
