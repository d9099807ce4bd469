"""Training on several workers: the steps of one process on the whole batch, honest ends, and one worker that speaks."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import Doubled, Kept, NoEvaluation, digits, train
from helpers_workers import environment_of, free_port, on_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnlab.config import compose
from bnlab.data.augment import Augment
from bnlab.data.batches import Batches
from bnlab.distributed import ALONE, RankLost, Workers, from_environment, shard
from bnlab.errors import BnlabError, ConfigError, EnvironmentFault
from bnlab.experiment import run
from bnlab.experiment.config import identity
from bnlab.models.model import build, models
from bnlab.norms.strategy import strategies
from bnlab.runner import sweep
from bnlab.runner.supervisor import JobOptions
from bnlab.training import checkpoint
from bnlab.training.callbacks import Callback
from bnlab.training.loop import Training
from bnlab.training.optim import Sgd
from bnlab.training.trainer import TrainerConfig

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
SHORT = ["model.widths=[4,8]", "trainer.device=cpu", "trainer.threads=1", "eval.probe_samples=128"]


# ---------------------------------------------------------------- parts of a batch


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 9))
def test_shards_are_consecutive_and_differ_by_at_most_one(samples: int, size: int) -> None:
    spans = [shard(samples, rank, size) for rank in range(size)]
    assert spans[0][0] == 0
    assert spans[-1][1] == samples
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert max(end - first for first, end in spans) - min(end - first for first, end in spans) <= 1


@pytest.mark.parametrize("last_batch", ["keep", "drop", "merge"])
@pytest.mark.parametrize("augment", [Augment(), Augment(shift=1, flip=True)])
def test_workers_share_each_batch_in_order(last_batch: Any, augment: Augment) -> None:
    """53 samples by 12 over 3 workers: the last batch of 5 (or 17) is cut unevenly."""
    keys: dict[str, Any] = {"batch_size": 12, "last_batch": last_batch, "seed": 3, "augment": augment}
    whole = Batches(digits(53), **keys)
    parts = [Batches(digits(53), **keys, rank=rank, size=3) for rank in range(3)]
    assert all(part.sizes == whole.sizes for part in parts)
    for epoch, start in ((0, 0), (1, 2)):
        streams = zip(whole.epoch(epoch, start), *(part.epoch(epoch, start) for part in parts), strict=True)
        for (images, labels), *shares in streams:
            assert torch.equal(images, torch.cat([x for x, _ in shares]))
            assert torch.equal(labels, torch.cat([y for _, y in shares]))


# ---------------------------------------------------------------- the loop, in float64


def trained(
    workers: Workers, norm: str, keys: dict[str, Any], last_batch: Any
) -> tuple[dict[str, Tensor], list[float]]:
    """Train 12 steps of 33 samples out of 120 in float64; return the weights and buffers, and the losses."""
    model = build(models["cnn"](widths=(4, 6)), strategies[norm](**keys), (1, 8, 8), 10, seed=0)
    model = nn.Sequential(Doubled(), model.double())
    rank, size = workers.rank, workers.size
    kept = Kept()
    with workers.together(CPU, 30.0):
        Training(
            model=model,
            batches=Batches(digits(120), batch_size=32, last_batch=last_batch, seed=5, rank=rank, size=size),
            evaluator=NoEvaluation(),  # type: ignore[arg-type]
            optimizer=Sgd(lr=0.1).make(model),
            rate_of=lambda step: 0.1 / (1 + step),
            total_steps=12,
            config=TrainerConfig(label_smoothing=0.1, device="cpu"),
            eval_every=1.0,
            device=CPU,
            recorder=kept,
            callback=Callback(),
            workers=workers,
        ).run()
    return kept.state, kept.losses


RUNS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "sync": ("sync", {}, "keep"),
    "sync-eps-outside": ("sync", {"eps_outside": True}, "merge"),
    "layer": ("layer", {}, "keep"),
    "local": ("batch", {}, "drop"),
}


def all_runs(workers: Workers) -> dict[str, tuple[dict[str, Tensor], list[float]]]:
    return {name: trained(workers, *run) for name, run in RUNS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_workers_take_the_steps_of_one_process_in_float64(size: int) -> None:
    """120 samples by 32: the last batch, of 24 or 56 samples, and all over 3 workers, are cut unevenly."""
    found = on_workers(size, all_runs)
    for name, (norm, keys, last_batch) in RUNS.items():
        if name == "local":
            norm, keys = "ghost", {"size": 16}
            if size == 3:  # 32 samples over 3 workers are 11, 11 and 10: no ghost size says that
                continue
        else:
            norm = "batch" if norm == "sync" else norm
        expected, losses = trained(ALONE, norm, keys, last_batch)
        for rank, runs in enumerate(found):
            state, recorded = runs[name]
            assert recorded == pytest.approx(losses, rel=1e-6)  # recorded in float32
            for key, value in expected.items():
                if name != "local" or "running" not in key:  # local statistics are each worker's own
                    assert torch.allclose(state[key], value, rtol=1e-12, atol=1e-12), (name, rank, key)


# ---------------------------------------------------------------- workers that fail


def one_fails(workers: Workers) -> list[str]:
    """Worker 1 fails between two collectives; afterwards both can go on."""
    told = []
    try:
        with workers.together(CPU, 20.0):
            if workers.rank == 1:
                raise ConfigError("no memory left\ntry less")
            workers.mean(torch.ones(3))
    except BnlabError as error:
        told.append(f"{type(error).__name__}: {error}")
    with workers.together(CPU, 20.0):
        told.append(str(workers.mean(torch.tensor([1.0, 2.0 * workers.rank])).tolist()))
    return told


def one_sleeps(workers: Workers) -> list[str]:
    """Worker 1 comes 3 seconds late where 1 is allowed."""
    begun = time.monotonic()
    try:
        with workers.together(CPU, 1.0):
            workers.mean(torch.ones(1))
            if workers.rank == 1:
                time.sleep(3)
            workers.mean(torch.ones(1))
    except RankLost as error:
        return [str(error), "in time" if time.monotonic() - begun < 20 else "late"]
    return []


def one_is_not_ready(workers: Workers) -> list[str]:
    try:
        with workers.agreed():
            if workers.rank == 1:
                raise EnvironmentFault("no data here\nfetch it")
    except EnvironmentFault as error:
        return [str(error).partition("\n")[0]]
    return []


def test_a_failure_of_one_worker_is_told_by_the_others_and_the_next_job_runs() -> None:
    first, second = on_workers(2, one_fails)
    assert first == ["EnvironmentFault: worker 1: no memory left", "[1.0, 1.0]"]
    assert second == ["ConfigError: no memory left\ntry less", "[1.0, 1.0]"]


def test_a_late_worker_ends_the_run_with_the_name_of_the_time_out() -> None:
    first, second = on_workers(2, one_sleeps)
    assert first[0].startswith("worker 0 waited 1 s for another worker (trainer.timeout)")
    assert first[1] == second[1] == "in time"


def test_no_worker_starts_when_one_is_not_ready() -> None:
    assert on_workers(2, one_is_not_ready) == [["worker 1: no data here"], ["no data here"]]


# ---------------------------------------------------------------- configurations


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As if torchrun had started so many processes, of which this is the first; nobody connects."""

    def start(size: int) -> Workers:
        for key, value in environment_of(0, size, 1).items():
            monkeypatch.setenv(key, value)
        workers = from_environment()
        assert workers is not None
        return workers

    return start


@pytest.mark.parametrize(
    ("size", "overrides", "message"),
    [
        (
            0,
            ["trainer.distributed=true"],
            r"torchrun's environment is missing\nstart it as torchrun --nproc-per-node=2",
        ),
        (2, ["measure=[landscape]"], r"in one process, and this run has 2\nset measure=cheap"),
        (2, [], r"trainer.distributed=false: 2 processes were started"),
        (2, ["trainer.distributed=true", "trainer.device=cuda:1"], r"trainer.device=cuda:1: 2 workers cannot share it"),
        (2, ["trainer.distributed=true", "norm=ghost", "data.batch_size=50"], r"norm.size=32: .*=25, the part of one"),
        (
            3,
            ["trainer.distributed=true", "data.batch_size=2"],
            r"data.batch_size=2: must be at least 1 sample for each",
        ),
        (
            3,
            ["trainer.distributed=true", "data.train_size=101", "data.batch_size=9"],
            r"the last batch has 2 samples for 3 workers\nset data.last_batch=drop or data.last_batch=merge",
        ),
        (
            2,
            ["trainer.distributed=true", "data.batch_size=2", "model=mlp", "data.last_batch=drop"],
            r"data.batch_size=2: norm=batch has one value a channel",
        ),
        (2, ["trainer.distributed=true", "norm=population", "norm.through=true"], r"norm=population: its gradient"),
    ],
)
def test_what_cannot_be_shared_is_refused(started: Any, size: int, overrides: list[str], message: str) -> None:
    workers = started(size) if size else ALONE
    with pytest.raises(ConfigError, match=message) as error:
        run.preflight(compose.jobs(["trainer.device=cpu", *overrides], multirun=False), workers)
    assert len(str(error.value).splitlines()) <= 3


def test_what_can_be_shared_is_not_refused(started: Any) -> None:
    workers = started(2)
    for more in (["norm=sync", "model=mlp", "data.batch_size=2", "data.last_batch=drop"], ["norm=population"]):
        run.preflight(compose.jobs(["trainer.distributed=true", "trainer.device=cpu", *more], multirun=False), workers)


def test_torchrun_with_one_process_is_one_process(started: Any) -> None:
    workers = started(1)
    (tree,) = compose.jobs(["trainer.distributed=true", "trainer.device=cpu"], multirun=False)
    run.preflight([tree], workers)


def test_identity_depends_on_the_number_of_workers_and_not_on_the_switch() -> None:
    plain, shared = (compose.jobs(more, multirun=False)[0] for more in ([], ["trainer.distributed=true"]))
    slow = compose.jobs(["trainer.timeout=9"], multirun=False)[0]
    assert identity(plain, "abc") == identity(shared, "abc") == identity(slow, "abc", 1)
    assert len({identity(shared, "abc", workers) for workers in (1, 2, 3)}) == 3


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("RANK", "2"), ("LOCAL_RANK", "-1")])
def test_a_broken_environment_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for key, good in environment_of(0, 2, 1).items():
        monkeypatch.setenv(key, value if key == name else good)
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        from_environment()


# ---------------------------------------------------------------- whole command lines


def torchrun(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    return subprocess.Popen(
        [*command, "-m", "bnlab", "train", *overrides, "trainer.distributed=true", *SHORT],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
    )


def losses_of(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((folder / "steps.csv").read_text().splitlines())]


@pytest.mark.slow
def test_a_sweep_under_torchrun_is_that_of_one_process(tmp_path: Path) -> None:
    """Float32, 30 steps, a ragged batch of 43 samples; sync as batch, and local batch as ghosts of the shard's size."""
    common = ["trainer.steps=30", "data.train_size=363", "data.batch_size=64", "data.shift=1", "optim.lr=0.02"]
    process = torchrun(tmp_path, "-m", "norm=sync,batch", *common)
    alone = {"0": ["norm=batch"], "1": ["norm=ghost", "norm.size=32"]}
    for number, norm in alone.items():
        train([*common, *norm, *SHORT], tmp_path / "alone" / number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert len(re.findall(r"  done  norm=\w+  seed=0  test_accuracy=", out)) == 2
    assert err.count("2 of 2 jobs done") == 1
    (sweep,) = tmp_path.glob("runs/2*")
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1"]
    folder, other = sweep / "0", tmp_path / "alone" / "0"
    assert losses_of(folder) == pytest.approx(losses_of(other), abs=2e-5)
    assert len(losses_of(folder)) == 30
    ours, theirs = checkpoint.load(folder)["model"], checkpoint.load(other)["model"]
    for key, value in theirs.items():
        assert torch.allclose(ours[key].float(), value.float(), rtol=1e-4, atol=2e-5), key
    environments = [json.loads((place / "environment.json").read_text()) for place in (folder, other)]
    assert [place["workers"] for place in environments] == [2, 1]
    statuses = [json.loads((place / "status.json").read_text()) for place in (folder, other)]
    assert statuses[0]["identity"] != statuses[1]["identity"]


def children_of(pid: int) -> dict[str, int]:
    """Return the processes that torchrun started, by their rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            settings = (path.parent / "environ").read_bytes().split(b"\0") if parent == pid else []
        except OSError:
            continue
        found |= {item[5:].decode(): int(path.parent.name) for item in settings if item.startswith(b"RANK=")}
    return found


@pytest.mark.slow
def test_a_stuck_worker_ends_the_run_after_the_time_out(tmp_path: Path) -> None:
    """Worker 1 is stopped, as a process that hangs; once the first has given up, it may go on, so that it can end."""
    process = torchrun(tmp_path, "norm=sync", "trainer.steps=1000000", "trainer.timeout=5", "eval.every=1e6")
    status: dict[str, Any] = {}
    stopped: float | None = None
    deadline = time.monotonic() + 90
    try:
        while status.get("state") != "failed" and time.monotonic() < deadline:
            time.sleep(0.1)
            if stopped is None and any(t.stat().st_size > 200 for t in tmp_path.glob("runs/*/steps.csv")):
                os.kill(children_of(process.pid)["1"], signal.SIGSTOP)
                stopped = time.monotonic()
            for path in tmp_path.glob("runs/*/status.json"):
                status = json.loads(path.read_text())
        assert stopped is not None
        assert time.monotonic() - stopped < 40
    finally:
        for pid in children_of(process.pid).values():
            os.kill(pid, signal.SIGCONT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert status["state"] == "failed"
    assert "waited 5 s for another worker (trainer.timeout)" in status["error"]
    assert "  failed  norm=sync  seed=0" in out
    assert "failed: worker 0 waited 5 s for another worker (trainer.timeout)" in err


def command_line(workers: Workers, folder: str, overrides: list[str], multirun: bool) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of `bnlab train` on one worker, without the start of a process."""
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = sweep.launch(["trainer.distributed=true", *overrides, *SHORT], multirun, None, JobOptions()).code
        except BnlabError as error:
            code = error.exit_code
            err.write(str(error))
    return code, out.getvalue(), err.getvalue()


def test_every_worker_refuses_and_only_the_first_says_so(tmp_path: Path) -> None:
    said = on_workers(2, command_line, str(tmp_path), ["norm=ghost", "norm.size=40"], False, connect=False)
    assert [code for code, _, _ in said] == [2, 2]
    assert said[0][2].startswith("norm.size=40: must be at most data.batch_size=32, the part of one of 2 workers\n")
    assert [said[0][1], *said[1][1:]] == ["", "", ""]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_every_worker_returns_the_code_of_the_sweep_and_only_the_first_records(tmp_path: Path) -> None:
    """The second job diverges, on all workers at the same step."""
    before = set(Path(tempfile.gettempdir()).glob("bnlab-[!t]*"))
    overrides = ["norm=none", "optim.lr=0.05,1e12", "trainer.steps=20"]
    said = on_workers(2, command_line, str(tmp_path), overrides, True, connect=False)
    assert [code for code, _, _ in said] == [1, 1]
    assert said[1][1:] == ("", "")
    assert [line.split()[1] for line in said[0][1].splitlines()] == ["done", "diverged"]
    assert "1 of 2 jobs done" in said[0][2]
    assert len(list(tmp_path.glob("runs/*/*/status.json"))) == 2
    assert set(Path(tempfile.gettempdir()).glob("bnlab-[!t]*")) <= before
