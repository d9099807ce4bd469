"""Finished runs evaluated again under other settings: the same bits as a training with these, kept beside the run."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cases import for_each
from helpers_cli import QUICK, bnlab
from helpers_training import train
from test_claims import SMALL, verdict_of, write

from bnlab.claims.claim import read_claim
from bnlab.cli.evaluate_again import is_of_several
from bnlab.config import compose
from bnlab.config.files import conf_dir
from bnlab.conformance.card import CHECKS
from bnlab.data.shifts import severity_of
from bnlab.errors import ConfigError
from bnlab.experiment.evaluate_again import evaluate_again
from bnlab.measure.modes import left_out
from bnlab.measure.population_statistics import mixed_with_batch
from bnlab.models.model import build, models, norm_layers
from bnlab.norms.strategy import strategies
from bnlab.record.evaluations import FILE, SETTINGS
from bnlab.record.read import evaluated, flatten, read_runs

TINY = ["data=digits", "model.widths=[4,4]", "trainer.steps=6", "trainer.device=cpu", "trainer.threads=1"]
TINY += ["eval.probe_samples=70", "eval.every=9"]
RULES = {"batch": "<= 0.000000001", "ghost": "> 0.1"}
CHANGES: list[dict[str, Any]] = [
    *({"eval.stats": stats} for stats in ("precise", "population", "test", "none", "folded")),
    {"eval.stats": "batch", "eval.batch_size": 1, "eval.stride": 2},
    {"eval.stats": "mixed", "eval.batch_size": 50, "eval.prior": 3.0},
    {"eval.stats": "batch", "eval.shifted": "label-sorted-5", "measure": "full"},
    {"eval.shifted": "noise-3"},
]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != FILE}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "population"])
def test_it_is_what_a_training_with_these_settings_ends_with(norm: str, tmp_path: Path) -> None:
    assert train([*TINY, f"norm={norm}"], tmp_path / "plain").state == "done"
    before = contents(tmp_path / "plain")
    assert evaluate_again(tmp_path / "plain", CHANGES) == len(CHANGES)
    assert contents(tmp_path / "plain") == before
    found = {run.identity: run for run in evaluated(read_runs([tmp_path / "plain"])[0][0])}
    assert len(found) == len(CHANGES)
    for number, change in enumerate(CHANGES):
        train([*TINY, f"norm={norm}", *(f"{key}={value}" for key, value in change.items())], tmp_path / str(number))
        (wanted,) = read_runs([tmp_path / str(number)])[0]
        other = found[wanted.identity]
        assert other.config == wanted.config
        assert wanted.summary is not None
        assert other.summary is not None
        assert other.summary["samples"] == wanted.summary["samples"]
        names = [name for name in wanted.summary["curve"] if name not in ("step", "epoch", "seconds")]
        for name in [name for name in names if "moving_average" not in name and "term_total" not in name]:
            assert other.summary["curve"][name][-1] == pytest.approx(
                wanted.summary["curve"][name][-1], rel=0, abs=0, nan_ok=True
            ), (change, name)
        assert "step" not in other.summary["curve"]  # no time to a target can be read off


def test_what_was_evaluated_is_used_again_as_long_as_the_weights_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train([*TINY, "norm=batch"], folder)
    changes = [{"eval.stats": "none"}, {"eval.stats": "running"}]
    assert evaluate_again(folder, changes) == 1  # the second is what the run itself was evaluated with
    assert evaluate_again(folder, changes) == 0
    assert evaluate_again(folder, [*changes, {"eval.stats": "test"}]) == 1
    (run,) = read_runs([folder])[0]
    assert sorted(each.config["eval.stats"] for each in evaluated(run)) == ["none", "test"]
    tree = json.loads((folder / FILE).read_text())
    for broken in (tree | {"weights": "0" * 64}, [], {}, tree | {"evaluations": {"x": {"config": {}}}}, {"schema": 2}):
        (folder / FILE).write_text(json.dumps(broken))
        (run,) = read_runs([folder])[0]
        assert not run.evaluations
    assert evaluate_again(folder, changes) == 1  # a damaged one is made anew


def test_the_settings_are_those_of_a_plain_configuration() -> None:
    (tree,) = compose.jobs([], multirun=False)
    flat = flatten(tree)
    assert {key: flat[key] for key in SETTINGS} == SETTINGS


@for_each("norm", ["batch", "layer", "frn"])
def test_left_out_by_hand(norm: str) -> None:
    model = build(models["cnn"](widths=(4, 4)), strategies[norm](), (1, 8, 8), 3, 0).double().eval()
    x = wanted = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    norms = [layer for _, layer in norm_layers(model)]
    assert norms
    for module in model:  # type: ignore[attr-defined]
        wanted = wanted if module in norms else module(wanted)
    with left_out(model):
        assert torch.equal(model(x), wanted)
    assert not torch.equal(model(x), wanted)


def test_statistics_of_every_second_row_and_column_by_hand() -> None:
    model = build(models["cnn"](widths=(4,)), strategies["batch"](), (1, 8, 8), 3, 0).double().eval()
    ((_, layer),) = norm_layers(model)
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    with torch.no_grad(), mixed_with_batch(model, 0.0, stride=2):
        model(torch.randn(1, 1, 8, 8, dtype=torch.float64))
    x, y = seen
    part = x[0, :, ::2, ::2].flatten(1)
    mean = part.sum(1) / part.shape[1]
    var = ((part - mean[:, None]) ** 2).sum(1) / part.shape[1]
    expected = (x - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


@for_each("word", ["blur", "blur-0", "blur-6", "blurr-1", "-1", "label-sorted", ""])
def test_a_shift_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"eval\.shifted=.*must be none, or a shift and its severity"):
        severity_of(word)
    assert severity_of("label-sorted-4") == ("label-sorted", 4)


# ---------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("again")
    done = bnlab("train", "-m", "norm=batch,layer", "seed=0,1", *QUICK, cwd=where)
    assert done.returncode == 0, done.stderr
    (sweep,) = where.glob("runs/2*")
    sweep.rename(where / "runs" / "s")
    return where


@pytest.mark.slow
def test_a_probe_of_a_sweep_is_that_of_each_run(place: Path) -> None:
    done = bnlab("probe", "runs/s", "-f", "json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "4 evaluations made" in done.stderr
    alone = json.loads(bnlab("probe", "runs/s/0", "--samples", "256", "-f", "json", cwd=place).stdout)["rows"]
    (run,) = read_runs([place / "runs" / "s" / "0"])[0]
    assert run.summary is not None
    for cause in ("batch noise", "moving average", "total"):
        (one,) = (r["value"] for r in alone if (r["split"], r["name"], r["metric"]) == ("test", cause, "moved"))
        assert run.summary["measured"][f"test.term_{cause.replace(' ', '_')}_kl"] == pytest.approx(one, rel=1e-9)
    table = bnlab("compare", "runs/s", "--metric", "term_batch_noise", "--metric", "size_flips", cwd=place).stdout
    assert "batch noise" in table


@pytest.mark.slow
def test_a_shift_of_a_sweep_is_that_of_each_run(place: Path) -> None:
    options = ["--shift", "noise,label-sorted", "--severity", "5", "--stats", "running,batch"]
    done = bnlab("shift", "runs/s", *options, cwd=place, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    one = bnlab("shift", "runs/s/1", "eval.probe_samples=400", *options, "-f", "json", cwd=place)
    rows = json.loads(one.stdout)["rows"]
    (run,) = read_runs([place / "runs" / "s" / "1"])[0]
    found = {(each.config["eval.shifted"], each.config["eval.stats"]): each for each in evaluated(run)}
    assert len(rows) == 6
    for row in rows:
        if (row["shift"], row["stats"]) == ("none", "batch"):
            continue  # the images as they are come in stored order, in a training too
        shift = f"{row['shift']}-{row['severity']}" if row["severity"] else "none"
        other = found[shift, row["stats"]].summary
        assert other is not None
        assert other["curve"]["test.accuracy"][0] == pytest.approx(row["accuracy"], abs=1e-12), row


@pytest.mark.slow
def test_what_cannot_be_is_said_and_the_rest_is_done(place: Path) -> None:
    done = bnlab("probe", "runs/s", "eval.stats=folded,none", cwd=place)
    assert done.returncode == 0
    assert "LayerLayer) is no affine map" in done.stderr
    assert "layer  folded" not in done.stdout
    for words, said in (
        (["eval.stats=off"], "eval.stats=off: must be one of running"),
        (["eval.shifted=blur-9"], "eval.shifted=blur-9: must be none, or a shift"),
        (["optim.lr=1"], "optim.lr=1: cannot be set here"),
        (["eval.stats=none", "--checkpoint", "x.pt"], "--checkpoint: is for one run, and runs/s holds several\n"),
        (["--quick"], "--quick: is for one run, and runs/s holds several\ngive one as it is, or leave out --quick\n"),
    ):
        done = bnlab("probe", "runs/s", *words, cwd=place)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert is_of_several([str(place / "runs" / "s")])
    assert not is_of_several([str(place / "runs" / "s" / "0"), "eval.batch_size=3"])


def test_a_comparison_has_them_where_it_is_asked_to(place: Path) -> None:
    assert bnlab("probe", "runs/s", "eval.stats=none", cwd=place).returncode == 0
    plain, both = (
        json.loads(bnlab("compare", "runs/s", *more, "-f", "json", cwd=place).stdout)
        for more in ([], ["--evaluated", "--where", "eval.stats=none,running", "--where", "norm=batch"])
    )
    assert {row["label"] for row in plain["rows"]} == {"batch", "layer"}
    assert "none" in {row["arm"].get("eval.stats") for row in both["rows"]}


@pytest.mark.slow
def test_a_claim_over_statistics_trains_each_seed_once(tmp_path: Path) -> None:
    rule = "test_accuracy[stats=none] - test_accuracy[stats=running] < 90"
    write(tmp_path, {"train": "norm=batch eval.stats=running,none,test", "rule": rule})
    done = bnlab("claim", "run", "mine", cwd=tmp_path)
    assert (done.returncode, verdict_of(tmp_path).verdict) == (0, "confirmed"), done.stderr
    assert "3 runs trained" in done.stderr
    assert len(verdict_of(tmp_path).runs) == 9
    assert len(read_runs([tmp_path / "runs" / "pool"])[0]) == 3
    done = bnlab("claim", "run", "mine", cwd=tmp_path)
    assert "0 runs trained" in done.stderr
    more = {"train": "norm=batch measure=full", "rule": "exact(size_flips) <= 99"}
    write(tmp_path, more, "full")
    done = bnlab("claim", "run", "full", cwd=tmp_path)
    assert "0 runs trained" in done.stderr
    assert verdict_of(tmp_path, "full").verdict == "confirmed"
    whole = "steps_to_target[stats=none] - steps_to_target[stats=running] < 2000"
    write(tmp_path, {"train": "norm=batch eval.stats=running,none", "rule": whole}, "other")
    done = bnlab("claim", "run", "other", cwd=tmp_path)
    assert "5 runs trained" in done.stderr  # curves are those of trainings: of seed 3, and of stats=none


@pytest.mark.slow
def test_a_training_that_diverged_has_diverged_whatever_it_is_evaluated_with(tmp_path: Path) -> None:
    base = f"{SMALL} optim.lr=1e30"
    rule = "rate(learned[stats=none] == 0) > 0.1"
    write(tmp_path, {"base": base, "train": "norm=none eval.stats=none,running", "rule": rule})
    assert bnlab("claim", "run", "mine", cwd=tmp_path).returncode == 0
    assert verdict_of(tmp_path).verdict in ("confirmed", "undecided")
    assert verdict_of(tmp_path).parts[0].n >= 3


@pytest.mark.slow
def test_a_claim_about_a_property_needs_no_run(tmp_path: Path) -> None:
    rule = {"all": [f"exact(check_error[norm={norm} property=merged]) {to}" for norm, to in RULES.items()]}
    write(tmp_path, {"train": None, "base": None, "check": "norm=batch,ghost property=merged,chain", "rule": rule})
    done = bnlab("claim", "run", "mine", cwd=tmp_path)
    assert (done.returncode, verdict_of(tmp_path).verdict) == (0, "confirmed"), done.stderr
    assert "the cases of `bnlab check`" in done.stdout
    write(tmp_path, {"train": None, "check": "norm=batch property=merge", "rule": "exact(check_error) > 1"}, "wrong")
    done = bnlab("claim", "run", "wrong", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "property=merge: no such property; did you mean merged?" in done.stderr


def test_shipped_claims_name_properties_that_there_are() -> None:
    for path in sorted((conf_dir() / "claim").glob("*.yaml")):
        for _, keys in read_claim(path).checks():
            assert keys
            assert set(keys) <= set(CHECKS), path.name
