"""Which figures a run can have is known before it is trained: against real runs, and in what is said of a claim."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_training import train
from test_claims import SMALL, identities, write

from bnlab.claims.claim import read_claim
from bnlab.claims.figures import hangs_on_a_model
from bnlab.config import compose
from bnlab.errors import ConfigError
from bnlab.experiment.figures import absent
from bnlab.meters.meter import meters
from bnlab.metrics import metrics
from bnlab.norms.strategy import strategies
from bnlab.record.read import read_runs
from bnlab.runner.claims import Wish, plan_of
from bnlab.runner.until_decided import Wishes
from bnlab.runner.until_decided import plan_of as decision_of
from bnlab.training.job import Job

FEW = ("none", "rms", "renorm")  # in every run of the tests; the others with all tests
LINE = (
    *SMALL.split(),
    "data.batch_size=16",
    "data.train_size=128",
    "model.dropout=0.2",
    "eval.every=9",
    "optim.lr=0.03",
)
OTHERS = (
    "norm=batch norm.affine=false",
    "norm=batch norm.affine=beta",
    "norm=population norm.through=true",
    "norm=none model.input_norm=batch",
    "norm=layer model.norm_every=2 model.norm_rest=frozen",
)
LINES = (*(f"norm={name}{' norm.size=8' * (name == 'ghost')}" for name in strategies), *OTHERS)


@pytest.mark.parametrize(
    "changed", [pytest.param(line, marks=() if line[5:] in FEW else pytest.mark.slow) for line in LINES]
)
def test_a_run_lacks_what_was_said_to_be_absent_and_nothing_else(changed: str, tmp_path: Path) -> None:
    model = "cnn model.widths=[8,8]" if changed in ("norm=instance", "norm=frn") else "mlp model.widths=[16,16]"
    for measured, steps in (meters, 2), (["statistics"], 11):  # which alone has a figure of ten readings
        metered = f"measure=[{','.join(measured)}] measure_every=1 trainer.steps={steps} schedule=constant"
        line = [*LINE, *f"model={model} {changed} {metered}".split()]
        ((_, tree),) = compose.planned(line, False)
        assert train(line, tmp_path / str(steps)).state == "done"
        (run,) = read_runs([tmp_path / str(steps)])[0]
        unread = {f"measure={meter}" for meter in {*meters} - {*measured}}
        asked = [each for each in metrics.values() if hangs_on_a_model(each) and each.by not in unread]
        asked = [each for each in asked if each.name != "stable_rate"]
        lacking = {metric.name for metric in asked if metric.derive(run.summary) is None}
        assert {metric.name for metric in asked if absent(metric, tree)} == lacking


SAID = {
    ("lambda_max[norm=renorm] / lambda_max[norm=batch] > 1", "measure=curvature norm=batch,renorm"): (
        "lambda_max[norm=renorm]: no run here can have it: the gradient of norm=renorm is not the derivative of its out"
    ),
    ("rate(ics[through=true] > 1) > 0", "measure=[landscape,gradients] norm=population norm.through=false,true"): (
        "ics[through=true]: no run here can have it: part of the gradient of norm=population comes through the whole"
    ),
    ("exact(mean_z[norm=layer]) == 0", "norm=batch,layer"): (
        "mean_z[norm=layer]: no run here can have it: norm=layer has no running statistics\nask for another figure"
    ),
    ("slope(log mean_z[norm=batch] over depth) > 0", "norm=batch model.widths=[8,8]"): (
        "mean_z[norm=batch]: no run here can have it: norm=batch has no running statistics in 3 layers or more, as a s"
    ),
    ("initial_share[norm=frozen] > 1", "norm=batch,frozen"): "norm=frozen averages no batches",
    ("gamma_drift > 1", "norm=batch norm.affine=beta"): "norm=batch has no gamma",
    ("beta_max > 1", "norm=rms"): "norm=rms has no beta",
    ("mean_drift_10 > 1", "norm=rms measure=statistics trainer.steps=18 measure_every=2"): (
        "mean_drift_10: no run here can have it: it is from a reading to the tenth after it, and there are 10"
    ),
    ("refresh_ms[norm=batch] > 1", "norm=batch,population"): "norm=batch has no refreshed statistics",
}


@pytest.mark.parametrize("case", SAID, ids=lambda case: case[0].partition("[")[0])
def test_a_claim_on_what_no_run_can_have_is_refused_by_name(case: tuple[str, str], tmp_path: Path) -> None:
    sentence, sweep = case
    path = write(tmp_path, {"train": sweep, "rule": sentence})
    with pytest.raises(ConfigError) as error:
        plan_of(read_claim(path), Wish(), identities)
    assert str(error.value).startswith(f"{path}: rule: {sentence}: ")
    assert SAID[case] in str(error.value)


def test_a_guard_on_what_no_run_can_have_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, {"requires": ["mean_z[norm=none] < 1"]})
    with pytest.raises(
        ConfigError, match=r"requires: mean_z.*: no run here can have it: norm=none has no running stat"
    ):
        plan_of(read_claim(path), Wish(), identities)


def test_what_has_enough_layers_or_does_not_fit_its_cell_is_let_through(tmp_path: Path) -> None:
    often = {"train": "norm=rms measure=statistics trainer.steps=19 measure_every=2", "rule": "mean_drift_10 > 1"}
    deep = {"train": "norm=batch model.widths=[8,8,8]", "rule": "slope(log mean_z over depth) > 0"}
    misfit = {
        "train": "norm=batch,layer data.batch_size=1 incompatible=record measure=activations",
        "rule": "rate(drift_index[norm=batch] > 1) > 0",
    }
    for changes in (often, deep, misfit):
        plan_of(read_claim(write(tmp_path, changes)), Wish(), identities)


def test_a_sweep_that_is_to_be_decided_by_it_is_refused_too() -> None:
    trees = [tree for _, tree in compose.planned([*LINE, "norm=none,batch", "seed=range(5)"], True)]
    jobs = [(Job(Path(str(i)), i), tree) for i, tree in enumerate(trees)]
    with pytest.raises(ConfigError, match="--metric gamma_drift: no run here can have it: norm=none has no gamma"):
        decision_of(Wishes(metric="gamma_drift"), jobs)
