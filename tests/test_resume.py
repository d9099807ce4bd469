"""A run that was stopped and gone on with, however often and wherever, ends as one that never was: bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers_cli import Command, bnlab, start
from helpers_probe import few_draws
from helpers_resume import MLP, SHORT, TABLES, assert_equal, interrupted, plain_summary
from helpers_training import train

from bnlab.experiment import run
from bnlab.meters.meter import meters
from bnlab.norms.strategy import strategies
from bnlab.record.latest import short_name
from bnlab.training import checkpoint, loop
from bnlab.training.callbacks import Callback
from bnlab.training.evaluation import Evaluator
from bnlab.training.job import Stop
from bnlab.training.optim import optimizers
from bnlab.training.schedule import schedules

CNN = ("model=cnn", "model.widths=[8,16]")
SELDOM = ("eval.every=1.5",)  # after 0, 8, 15 and 17 steps: before the first stop, between the two, and after both

# strategies with all the state that their parameters can give them
MORE_STATE = {
    "batch average": ("norm=batch", "norm.momentum=null", "norm.stat_samples=20"),
    "ghost sequential": ("norm=ghost", "norm.size=16", "norm.update=sequential"),
    "streaming average": ("norm=streaming", "norm.momentum=null"),
    "population seldom": ("norm=population", "norm.every=3", "norm.samples=64"),
    "population through": ("norm=population", "norm.through=true"),
    "frozen between": ("norm=batch", "model.norm_every=2", "model.norm_rest=frozen"),
    "refrozen between": ("norm=batch", "model.norm_every=2", "model.norm_rest=refrozen"),
    "renorm early": ("norm=renorm", "norm.warmup=0.1", "norm.ramp=0.5"),
    "samples one by one": ("norm=streaming", "data.batch_size=1", "trainer.steps=11", "eval.every=0.02"),
    "batches that cannot be normalized": ("norm=batch", "data.train_size=49", "model=mlp", "model.widths=[8]"),
}


class FailAt(Callback):
    """Raises after a step, so that no checkpoint is written for it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def advanced(self, step: int, loss: float, images_per_second: float) -> None:
        if step == self.step:
            raise RuntimeError("a fault of the test")


@pytest.fixture(autouse=True)
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "INTERVAL_SECONDS", 0.0)
    few_draws(monkeypatch)


def check(tmp_path: Path, overrides: Sequence[str], *stops: dict[str, int]) -> None:
    """Compare a run that was stopped at each of `stops` in turn with one that never was."""
    assert train(overrides, tmp_path / "whole").state == "done"
    for where in stops:
        interrupted(overrides, tmp_path / "resumed", **where)
    assert train(overrides, tmp_path / "resumed").state == "done"
    assert_equal(tmp_path / "resumed", tmp_path / "whole")


# ---------------------------------------------------------------- whatever is trained


@pytest.mark.parametrize("norm", list(strategies))
def test_every_strategy_goes_on_bit_for_bit(tmp_path: Path, norm: str) -> None:
    number = list(strategies).index(norm)
    optimizer, schedule = list(optimizers)[number % 2], list(schedules)[number % 4]
    more = (f"norm={norm}", f"optim={optimizer}", "optim.lr=0.01", f"schedule={schedule}", f"seed={number}")
    check(tmp_path, [*SHORT, *CNN, *more], {"step": 3}, {"evaluation": 8}, {"step": 13})


@pytest.mark.parametrize("name", list(MORE_STATE))
def test_all_state_of_a_strategy_is_kept(tmp_path: Path, name: str) -> None:
    check(tmp_path, [*SHORT, *CNN, *MORE_STATE[name]], {"step": 2}, {"step": 7}, {"step": 8})


@pytest.mark.parametrize("schedule", list(schedules))
@pytest.mark.parametrize("optimizer", list(optimizers))
def test_every_optimizer_and_schedule_goes_on_bit_for_bit(tmp_path: Path, optimizer: str, schedule: str) -> None:
    more = (f"optim={optimizer}", "optim.lr=0.01", f"schedule={schedule}", "norm=batch")
    check(tmp_path, [*SHORT, *MLP, *more], {"step": 1}, {"step": 10})


@pytest.mark.parametrize(
    "more",
    [
        ("trainer.precision=bfloat16", "norm=renorm"),
        ("trainer.precision=bfloat16", "norm=population", "optim=adamw"),
        ("trainer.channels_last=false", "data.storage=uint8", "data.flip=true"),
        pytest.param(("measure=full", "norm=batch", *SELDOM), marks=pytest.mark.slow),
        pytest.param(("measure=full", "norm=online", *SELDOM), marks=pytest.mark.slow),
        (f"measure=[{','.join(meters)}]", "measure_every=4", "norm=batch"),
        pytest.param((f"measure=[{','.join(meters)}]", "norm=streaming", *SELDOM), marks=pytest.mark.slow),
        ("eval.stats=precise",),
        ("eval.stats=population",),
        ("eval.stats=mixed",),
        ("eval.stats=folded", "norm=ghost", "norm.size=16"),
        ("norm=batch", "optim.norm_lr=0.1", "schedule=cosine"),
        ("norm=layer", "optim.only=norm", "optim=adamw"),
        ("data.last_batch=merge", "model=resnet", "model.depth=8", "model.width=4"),
    ],
    ids=" ".join,
)
def test_every_way_to_train_and_evaluate_goes_on_bit_for_bit(tmp_path: Path, more: Sequence[str]) -> None:
    model = () if any(line.startswith("model=") for line in more) else CNN
    check(tmp_path, [*SHORT, *model, *more], {"step": 3}, {"step": 9})


def test_a_checkpoint_from_before_there_were_meters_goes_on(tmp_path: Path) -> None:
    line = [*SHORT, *MLP, "norm=batch"]
    train(line, tmp_path / "whole")
    interrupted(line, tmp_path / "resumed", step=3)
    state = checkpoint.load(tmp_path / "resumed")
    del state["panel"]
    for name in ("readings", "meter_seconds", "error", "first_loss", "lost_steps"):
        del state["outcome"][name]
    for group in state["optimizer"]["param_groups"]:
        del group["factor"]
    checkpoint.save(tmp_path / "resumed", state)
    train(line, tmp_path / "resumed")
    tables = [(tmp_path / run / "steps.csv").read_bytes() for run in ("resumed", "whole")]
    assert tables[0] == tables[1]


# ---------------------------------------------------------------- wherever it was stopped

PLAIN = (*SHORT, *CNN, "norm=batch", "optim=adamw", "optim.lr=0.01")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of `PLAIN`, never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(PLAIN, folder).state == "done"
    return folder


def test_steps_do_not_depend_on_how_often_losses_are_looked_at(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "INTERVAL_SECONDS", 1e9)
    train(PLAIN, tmp_path / "run")
    assert_equal(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stops",
    [
        [{}],
        [{}, {}, {"evaluation": 0}, {"step": 2}],
        [{"step": 5}],
        [{"step": 4}, {"evaluation": 4}],
        [{"evaluation": 16}],
        [{"step": step} for step in range(1, 17)],
    ],
    ids=[
        "before the first step",
        "again and again at the start",
        "between epochs",
        "at an evaluation",
        "late",
        "every",
    ],
)
def test_stopped_anywhere(tmp_path: Path, whole: Path, stops: Sequence[dict[str, int]]) -> None:
    for where in stops:
        interrupted(PLAIN, tmp_path / "run", **where)
    assert train(PLAIN, tmp_path / "run").state == "done"
    assert_equal(tmp_path / "run", whole)


def test_stopped_after_the_last_step_before_the_summary(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(run, "summarize", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(PLAIN, tmp_path / "run")
    monkeypatch.setattr(loop, "train_step", None)  # none follows
    monkeypatch.setattr(Evaluator, "evaluate", None)
    assert train(PLAIN, tmp_path / "run").state == "done"
    assert_equal(tmp_path / "run", whole)


def test_rows_after_the_checkpoint_are_taken_back(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    assert train(PLAIN, run, callback=FailAt(6)).state == "failed"  # with no checkpoint at all
    interrupted(PLAIN, run, step=5)
    for step in (11, 15, 17):  # each goes on from 5
        ending = train(PLAIN, run, callback=FailAt(step))
        assert (ending.state, ending.reason) == ("failed", "RuntimeError: a fault of the test")
        assert (run / "steps.csv").read_text().splitlines()[-1].startswith(f"{step},")
    with open(run / "steps.csv", "a") as torn:
        torn.write("18,3,0.12")
    with open(run / "evals.csv", "ab") as torn_by_the_system:
        torn_by_the_system.write(bytes(100))
    assert train(PLAIN, run).state == "done"
    assert_equal(run, whole)


def test_a_finished_run_is_left_alone(tmp_path: Path, whole: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.iterdir() if path.name != "run.log"}
    ending = train(PLAIN, whole)
    assert ending.state == "done"
    assert ending.score == json.loads((whole / "summary.json").read_text())["curve"]["valid.accuracy"][-1]
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.iterdir() if path.name != "run.log"}
    assert after == before


def test_a_run_that_diverges_does_so_at_the_same_step_after_a_stop(tmp_path: Path) -> None:
    wild = (*SHORT, *MLP, "norm=none", "optim.lr=1e9", "schedule=constant")
    ending = train(wild, tmp_path / "whole")
    assert ending.state == "diverged"
    at = json.loads((tmp_path / "whole/summary.json").read_text())["diverged_at"]
    interrupted(wild, tmp_path / "resumed", step=at - 1)
    assert train(wild, tmp_path / "resumed").state == "diverged"
    assert plain_summary(tmp_path / "resumed") == plain_summary(tmp_path / "whole")
    for table in TABLES:
        assert (tmp_path / "resumed" / table).read_bytes() == (tmp_path / "whole" / table).read_bytes()


# ---------------------------------------------------------------- inside of an evaluation


class InEvaluation(Stop):
    """Counts how often an evaluation asks whether it is to go on; at the chosen time it is not."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.asked = at, 0

    def check(self) -> None:
        self.asked += 1
        if self.asked == self.at:
            self.request()
        super().check()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("norm=batch", "eval.stats=precise"),
        ("norm=renorm", "measure=full", "norm.warmup=0", "eval.probe_samples=16"),
        ("norm=population", "norm.every=3", "norm.samples=64"),
        ("norm=online", "eval.stats=batch", "trainer.precision=bfloat16"),
    ],
    ids=" ".join,
)
def test_stopped_inside_of_an_evaluation(tmp_path: Path, more: Sequence[str]) -> None:
    few = [*PLAIN, "trainer.steps=4", "eval.every=0.4", "eval.probe_samples=48", *more]  # evaluated after 0, 2, 4
    counter = InEvaluation()
    assert train(few, tmp_path / "whole", counter).state == "done"
    assert counter.asked > 100
    moments = [1, counter.asked, *random.Random(0).sample(range(2, counter.asked), 4)]
    for moment in moments:
        folder = tmp_path / f"resumed{moment}"
        with pytest.raises(KeyboardInterrupt):
            train(few, folder, InEvaluation(moment))
        assert torch.is_grad_enabled()
        assert train(few, folder).state == "done"
        assert_equal(folder, tmp_path / "whole")
    for again in (5, 50, 100):  # time after time, then to the end
        with pytest.raises(KeyboardInterrupt):
            train(few, tmp_path / "resumed", InEvaluation(again))
    assert train(few, tmp_path / "resumed").state == "done"
    assert_equal(tmp_path / "resumed", tmp_path / "whole")


# ---------------------------------------------------------------- by signals, from the command line

LONG = ["model=mlp", "model.widths=[64]", "data.batch_size=32", "trainer.steps=20000", "eval.every=20"]
LONG += ["eval.probe_samples=256", "trainer.device=cpu", "trainer.threads=1", "model.dropout=0.1"]


def started(place: Path, *arguments: str) -> Command:
    """Start a command line and return once it has trained for some steps."""
    before = sum(path.stat().st_size for path in place.glob("runs/*/steps.csv"))
    process = start(*arguments, cwd=place, supervised=True)
    end = time.monotonic() + 300
    while sum(path.stat().st_size for path in place.glob("runs/*/steps.csv")) < before + 200:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_leaves_a_checkpoint_and_one_line_on_how_to_go_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = started(tmp_path, "train", *LONG)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    (folder,) = tmp_path.glob("runs/2*")
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert "  interrupted  " in out
    assert "Traceback" not in out + err
    assert err.count("bnlab resume") == 1
    assert f"bnlab resume {short_name(folder.name)}\n" in err
    step = checkpoint.load(folder)["step"]
    assert 0 < step < 20000
    assert len((folder / "steps.csv").read_text().splitlines()) == step + 1

    process = started(tmp_path, "resume", str(folder))  # and a second time
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, "Traceback" in out + err) == (code, False), err
    assert checkpoint.load(folder)["step"] >= step


@pytest.mark.slow
def test_bnlab_resume_ends_as_a_run_never_interrupted(tmp_path: Path) -> None:
    some = [*LONG, "trainer.steps=3000"]
    process = started(tmp_path, "train", *some)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    (folder,) = tmp_path.glob("runs/2*")
    assert checkpoint.load(folder)["step"] < 3000
    done = bnlab("resume", str(folder), cwd=tmp_path)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert "  done  " in done.stdout
    assert train(some, tmp_path / "whole").state == "done"
    assert_equal(folder, tmp_path / "whole")
