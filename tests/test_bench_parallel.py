"""Training with a late worker: collectives and bytes counted by hand, who waits, and workers that never outlive it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cli import BNLAB, bnlab, environment
from helpers_workers import on_workers

from bnlab.bench import straggler_launch
from bnlab.bench.arms import read
from bnlab.bench.engine import BenchConfig
from bnlab.bench.straggler_launch import check, run_workers
from bnlab.bench.straggler_result import MODES, StragglerStep, StragglerTime
from bnlab.bench.straggler_worker import Contender, _by_block, measure
from bnlab.claims.evaluate import evidence_of
from bnlab.claims.language import parse_sentence
from bnlab.cli.bench import bench, delays_of
from bnlab.cli.bench_record import record_workers
from bnlab.compare.comparison import compare
from bnlab.config import compose
from bnlab.distributed import Workers
from bnlab.errors import ConfigError, EnvironmentFault, IncompatibleError
from bnlab.experiment.config import Config, parse_config
from bnlab.experiment.setup import bundle_of, device_batches
from bnlab.interval import Interval
from bnlab.record.read import read_runs
from bnlab.report.console import Terminal
from bnlab.report.straggler_report import answer, straggler_table

CPU = torch.device("cpu")
SMALL = ["data=digits", "model=mlp", "model.widths=[6,4]", "data.batch_size=16", "trainer.device=cpu"]


def config_of(*overrides: str) -> Config:
    return parse_config(compose.jobs([*SMALL, *overrides], multirun=False)[0])


# ---------------------------------------------------------------- collectives and bytes, by hand; who waits

ARMS = {
    "sync": ["norm=sync"],
    "outside": ["norm=sync", "norm.eps_outside=true"],
    "batch": ["norm=batch"],
    "layer": ["norm=layer"],
    "none": ["norm=none"],
}
LATE = 150.0
Counts = dict[str, tuple[int, int, int]]
Steps = dict[tuple[str, str, float], StragglerStep]


def counted(workers: Workers) -> Counts:
    found = {}
    for name, overrides in ARMS.items():
        config = config_of(*overrides)
        bundle = bundle_of(config.data)
        batches = device_batches(config, bundle, bundle.train, CPU, training=True, workers=workers)
        for mode in MODES:
            sent = Contender(config, bundle, batches, CPU, workers, mode).collectives()
            found[f"{name} {mode}"] = (sent.forward, sent.backward, sent.bytes)
    return found


def counted_and_timed(workers: Workers) -> tuple[Counts, Steps]:
    configs = {name: config_of(f"norm={name}") for name in ("sync", "batch")}
    limits = BenchConfig(seconds=0.1, rounds=2, precision=1e-9)
    with workers.together(CPU, 30.0):
        found = measure("", configs, [0.0, LATE], limits, limits.seconds, workers, lambda rounds, left: None)
        counts = counted(workers)
    assert (found.rounds, found.stopped_by, found.workers) == (6, "budget", 2)
    return counts, {(step.norm, step.gradients, step.delay_ms): step for step in found.steps}


@pytest.fixture(scope="module")
def on_two() -> list[tuple[Counts, Steps]]:
    return on_workers(2, counted_and_timed)


@pytest.mark.slow
def test_collectives_and_bytes_are_those_of_a_small_network(on_two: list[tuple[Counts, Steps]]) -> None:
    """64 pixels, layers of 6 and 4 channels, 10 classes, float32; the size of a worker's part has no influence.

    Forward, sync sends mean and variance of each channel and a count, backward two sums of each channel; with eps
    outside the root, backward, the gradient of the rows of both workers.
    """
    weights = 64 * 6 + 6 * 4 + 4 * 10 + 10
    gamma_and_beta, biases = 2 * (6 + 4), 6 + 4
    rows, sums = (2 * 6 + 1) + (2 * 4 + 1), 2 * (6 + 4)
    for found, _ in on_two:
        assert found == {
            "sync local": (2, 2, 4 * (rows + sums)),
            "outside local": (2, 2, 4 * (rows + 2 * rows)),
            "batch local": (0, 0, 0),
            "layer local": (0, 0, 0),
            "none local": (0, 0, 0),
            "sync averaged": (2, 3, 4 * (rows + sums + weights + gamma_and_beta)),
            "outside averaged": (2, 3, 4 * (rows + 2 * rows + weights + gamma_and_beta)),
            "batch averaged": (0, 1, 4 * (weights + gamma_and_beta)),
            # layer normalization cancels no bias
            "layer averaged": (0, 1, 4 * (weights + gamma_and_beta + biases)),
            "none averaged": (0, 1, 4 * (weights + biases)),
        }


@pytest.mark.slow
def test_a_late_worker_holds_up_the_forward_pass_of_sync_only(on_two: list[tuple[Counts, Steps]]) -> None:
    """Medians of six rounds: what waits, waits 150 ms, and what does not is far below half of that."""
    steps = on_two[0][1]
    assert len(steps) == 8
    for mode in ("averaged", "local"):
        assert steps["sync", mode, LATE].forward_growth.value > 100
        assert steps["batch", mode, LATE].forward_growth.value < 75
    assert steps["batch", "averaged", LATE].step_growth.value > 100
    assert steps["batch", "local", LATE].step_growth.value < 75
    punctual, late = steps["sync", "averaged", 0.0], steps["sync", "averaged", LATE]
    assert (punctual.step_growth.value, punctual.step_growth.low, punctual.step_growth.high) == (0.0, 0.0, 0.0)
    assert late.gradient_bytes == steps["batch", "averaged", 0.0].sent_bytes
    assert late.sent_bytes - late.gradient_bytes == steps["sync", "local", 0.0].sent_bytes


# ---------------------------------------------------------------- what is refused, before anything starts


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("workers were started")

    monkeypatch.setattr(straggler_launch, "run_workers", refuse)


@pytest.mark.parametrize(
    ("overrides", "workers", "error", "message"),
    [
        (["data.batch_size=2", "norm=layer"], 3, ConfigError, "data.batch_size=2: must be at least 1 sample for each"),
        (
            ["norm=population", "norm.through=true"],
            2,
            IncompatibleError,
            "norm=population: its gradient through the stat",
        ),
        (["norm=ghost", "norm.size=12"], 2, IncompatibleError, "norm.size=12: .*=8, the part of one of 2 workers"),
        (["trainer.device=cuda:0"], 2, ConfigError, "trainer.device=cuda:0: 2 workers cannot share it"),
        (["trainer.timeout=1.5"], 2, ConfigError, "trainer.timeout=1.5: a worker that is 2000 ms late"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    nothing_starts: None, overrides: list[str], workers: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bench([*SMALL, *overrides], workers=workers, delay="0,2000")


def test_what_can_be_shared_is_not_refused() -> None:
    for norm in ("sync", "batch", "population", "ghost"):
        check(config_of(f"norm={norm}", "norm.size=8") if norm == "ghost" else config_of(f"norm={norm}"), 2, 20.0)


@pytest.mark.parametrize(("text", "delays"), [("0,5,20", [0, 5, 20]), ("20,5", [0, 5, 20]), ("0.5", [0, 0.5])])
def test_delays_begin_at_none(text: str, delays: list[float]) -> None:
    assert delays_of(text) == delays


@pytest.mark.parametrize("text", ["", "0", "-1", "5,x", "nan", "inf", "1e9", "5,"])
def test_wrong_delays_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--delay="):
        delays_of(text)


def test_other_kinds_of_bench_are_refused_beside_workers() -> None:
    beside = "{}: cannot be combined with {}"
    for layers, scale, pair in ((True, None, ("--layers", "--workers")), (False, "width", ("--workers", "--scale"))):
        with pytest.raises(ConfigError, match=beside.format(*pair)):
            bench(SMALL, layers, scale, 2)
    with pytest.raises(ConfigError, match="--delay=7: only with --workers"):
        bench(SMALL, delay="7")


def test_one_worker_is_refused(tmp_path: Path) -> None:
    done = bnlab("bench", "--workers", "1", *SMALL, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "--workers 1: must be at least 2\n")
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- what is printed


def late(norm: str, gradients: Any, step: float, forward: float, spread: float = 1.0) -> StragglerStep:
    step_growth, forward_growth = (Interval(by, by - spread, by + spread, 30) for by in (step, forward))
    return StragglerStep(norm, gradients, 20.0, 30.0, step_growth, 9.0, forward_growth, 5.0, 1.0, 2, 3, 90_000, 80_000)


def found_of(*steps: StragglerStep) -> StragglerTime:
    nothing = Interval(0.0, 0.0, 0.0, 30)
    punctual = [replace(step, delay_ms=0.0, step_growth=nothing, forward_growth=nothing) for step in steps]
    pairs = [step for pair in zip(punctual, steps, strict=True) for step in pair]
    return StragglerTime("", ("digits", "mlp, batch 16"), 2, tuple(pairs), 30, "budget", 9.0)


def test_the_answer_is_that_of_the_intervals() -> None:
    waits = found_of(late("sync", "averaged", 20, 20), late("sync", "local", 20, 20))
    assert "sync: yes, its statistics wait for the slowest: with a worker 20 ms late" in answer(waits, "sync")
    free = found_of(late("batch", "averaged", 20, 0), late("batch", "local", 0, 0))
    assert "batch: no, nobody waits in order to normalize" in answer(free, "batch")
    assert "where they are, by +20.0 ms, of which +0.0 ms in the forward pass" in answer(free, "batch")
    doubtful = found_of(late("batch", "averaged", 20, 0, 15), late("batch", "local", 0, 0, 15))
    assert "batch: not clear within these intervals" in answer(doubtful, "batch")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_the_table_fits(monkeypatch: pytest.MonkeyPatch, width: int, encoding: str) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    raw = io.BytesIO()
    out = Terminal(io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    out.print(straggler_table(found_of(late("sync", "averaged", 20, 20), late("sync", "local", 20, 20)), out))
    lines = raw.getvalue().decode(encoding).splitlines()
    assert max(map(len, lines)) <= width
    shown = "\n".join(lines)
    assert "+20.0 (+19.0 to +21.0)" in shown
    assert ("left out for width" in shown) == (width == 80)
    assert "\x1b" not in shown


def test_a_record_has_an_arm_a_strategy_that_claims_read(tmp_path: Path) -> None:
    local = late("sync", "local", 20, 20)
    waits = replace(local, growth_by_block=(19.0, 20.0, 24.0))
    assert StragglerStep.of_plain(json.loads(json.dumps(asdict(waits)))) == waits
    assert "growth_by_block" not in waits.figures()
    _, sections, _ = read([*SMALL, "norm=sync,batch"])
    free = (late("batch", "averaged", 20, 0), replace(late("batch", "local", 0, 0), sent_bytes=80_000))
    record_workers(sections, [found_of(late("sync", "averaged", 20, 20), waits, *free)], tmp_path)
    runs = read_runs([tmp_path])[0]
    assert [run.config["trainer.workers"] for run in runs] == [2, 2]

    def value(text: str) -> tuple[float, int, str]:
        evidence = evidence_of(parse_sentence(text).of, runs)
        return evidence.value, evidence.n, evidence.over

    assert value("wait_ms[norm=sync] > 10") == (21.0, 3, "block")
    assert value("exact(collectives[norm=sync]) == 5") == (5.0, 1, "block")
    assert value("exact(exchanged_kb[norm=sync]) == 90") == (90.0, 1, "block")


def test_blocks_are_rounds_in_a_row() -> None:
    growths = [float(n) for n in range(20)]
    parts = [growths[i:j] for i, j in itertools.pairwise((0, 3, 7, 10, 13, 17, 20))]
    assert _by_block(growths) == tuple(map(statistics.median, parts))
    assert _by_block([1.0, 2.0]) == (1.0, 2.0)


# ---------------------------------------------------------------- real processes


def processes_in(folder: Path) -> dict[str, int]:
    """Return torchrun ("") and its workers (by rank) that have `folder` as their working directory."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "cwd") != str(folder):
                continue
            settings = (path / "environ").read_bytes().split(b"\0")
            is_torchrun = b"torch.distributed.run" in (path / "cmdline").read_bytes()
        except OSError:
            continue
        found |= {item[5:].decode(): int(path.name) for item in settings if item.startswith(b"RANK=")}
        found |= {"": int(path.name)} if is_torchrun else {}
    return found


def gone(folder: Path) -> bool:
    end = time.monotonic() + 300
    while processes_in(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return not processes_in(folder)


@pytest.mark.slow
def test_the_command_prints_records_and_leaves_no_process(tmp_path: Path) -> None:
    keys = ["data=digits", "model=mlp", "model.widths=[8,8]", "trainer.device=cpu", "bench.seconds=1", "bench.rounds=6"]
    options = ["--workers", "2", "--delay", "3", "--format", "json"]
    done = bnlab("bench", *options, *keys, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert processes_in(tmp_path) == {}
    document = json.loads(done.stdout)
    rows = document["rows"]
    assert [(row["norm"], row["gradients"], row["delay_ms"]) for row in rows] == list(
        itertools.product(("sync", "batch", "group"), ("averaged", "local"), (0.0, 3.0))
    )
    assert all(row["rounds"] >= 6 and row["workers"] == 2 for row in rows)
    assert [row["forward_collectives"] for row in rows] == [2] * 4 + [0] * 8
    recorded = list(csv.DictReader((tmp_path / document["record"] / "bench.csv").read_text().splitlines()))
    assert [float(row["step_ms"]) for row in recorded] == [row["step_ms"] for row in rows]
    (section,) = compare([tmp_path / document["record"]], metrics=["collectives"]).sections
    assert {row.label: row.metrics["collectives"].value for row in section.rows} == {"sync": 4, "batch": 0, "group": 0}


@pytest.mark.slow
def test_a_stuck_worker_ends_the_bench(tmp_path: Path) -> None:
    """Worker 1 is stopped, as one that hangs, and goes on after the others have given it up."""
    process = subprocess.Popen(
        [*BNLAB, "bench", "--workers", "2", "--delay", "5", *SMALL, "norm=sync,batch", "trainer.timeout=4"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(OMP_NUM_THREADS="1"),
    )
    assert process.stderr is not None
    assert any("round" in line for line in process.stderr)
    stuck = processes_in(tmp_path)["1"]
    os.kill(stuck, signal.SIGSTOP)
    time.sleep(5)
    os.kill(stuck, signal.SIGCONT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert re.match(r"worker 0 of 2: worker 0 waited 4 s for another worker \(trainer.timeout\)\n", err)
    assert gone(tmp_path)
    assert not (tmp_path / "runs").exists()


FAKE = """
import json, os, signal, sys, threading, time

trouble = json.load(open(sys.argv[1]))["trouble"]
if os.environ["RANK"] == "1" and trouble == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if trouble == "left alone":
    from bnlab.bench.straggler_worker import _end_with_stdin
    threading.Thread(target=_end_with_stdin, daemon=True).start()
print(json.dumps({"title": "", "round": int(os.environ["RANK"]), "left": 1.0}) + "\\n", end="", flush=True)
time.sleep(100)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that have the trouble of the plan, and otherwise sleep."""
    (tmp_path / "fake_worker.py").write_text(FAKE)
    monkeypatch.setattr(straggler_launch, "WORKER", "fake_worker")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.chdir(tmp_path)


def test_a_worker_that_dies_ends_the_bench(fake: None, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="worker 1 of 2 was ended by SIGKILL"):
        run_workers({"trouble": "dies", "sections": [{}]}, 2, 1, lambda title, rounds, left: None)
    assert processes_in(tmp_path) == {}


def test_an_interruption_ends_the_workers(fake: None, tmp_path: Path) -> None:
    def interrupt(title: str, rounds: int, left: float) -> None:
        assert "" in processes_in(tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_workers({"trouble": "", "sections": [{}]}, 2, 1, interrupt)
    assert processes_in(tmp_path) == {}


@pytest.mark.slow
def test_workers_do_not_outlive_a_command_that_was_killed(fake: None, tmp_path: Path) -> None:
    def kill(title: str, rounds: int, left: float) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    plan = {"trouble": "left alone", "sections": [{}]}
    command = multiprocessing.get_context("fork").Process(target=run_workers, args=(plan, 2, 1, kill))
    command.start()
    command.join(60)
    assert command.exitcode == -signal.SIGKILL
    assert gone(tmp_path)
