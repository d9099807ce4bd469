"""Steps on CUDA: which are bound by launches, and steps replayed from a graph.

Without a device the order of things is tested on a CUDA that only pretends; the rest is skipped.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_bench import CPU, SMALL, Watched, ignore, sections, table, weights
from helpers_cli import bnlab
from torch import Tensor

from bnlab import timing
from bnlab.bench import stepper as stepping
from bnlab.bench.arms import contest
from bnlab.bench.engine import BenchConfig, Contest, ContestTime, Stepper, figures, launch_bound, measure
from bnlab.bench.pairing import Figures
from bnlab.bench.stepper import Batch, first_batches, stepper
from bnlab.bench.traffic import Traffic
from bnlab.cli.bench import bench
from bnlab.cli.bench_record import record
from bnlab.compare.comparison import compare
from bnlab.errors import ConfigError, IncompatibleError
from bnlab.experiment.setup import bundle_of, device_batches
from bnlab.record.read import read_runs
from bnlab.report.rows import TIDY_FORMATS
from bnlab.training import loop

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
NAN = math.nan

# ---------------------------------------------------------------- bound by launches


def queue(launch_ms: float, kernel_ms: float, kernels: int = 100) -> tuple[float, float]:
    """Return when the host and when the device is through: a kernel starts when it is issued and the last has ended."""
    end = 0.0
    for number in range(1, kernels + 1):
        end = max(end, number * launch_ms) + kernel_ms
    return kernels * launch_ms, end


@pytest.mark.parametrize(
    ("launch_ms", "kernel_ms", "bound"),
    [(0.01, 0.001, True), (0.01, 0.0099, True), (0.01, 0.0121, True), (0.01, 0.013, False), (0.01, 0.1, False)],
)
def test_a_step_is_bound_by_launches_where_kernels_wait_for_them(
    launch_ms: float, kernel_ms: float, bound: bool
) -> None:
    assert launch_bound(*queue(launch_ms, kernel_ms)) is bound


def test_threshold_is_four_fifths() -> None:
    assert [launch_bound(host, 1.0) for host in (0.79, 0.8, 1.0, 1.01)] == [False, True, True, True]


def test_the_clock_of_cuda_tells_the_hosts_time_from_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    device_ms = iter([5.0, 8.0, 14.0, 15.0, 100.0, 101.0])
    host_ns = iter([1_000_000, 1_500_000, 2_500_000, 2_750_000, 9_000_000, 9_100_000])

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            self.at = next(device_ms)

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter_ns=lambda: next(host_ns)))
    phases = timing.phase_clock(torch.device("cuda"))
    for _ in range(4):
        phases.mark()
    assert (phases.flush(), phases.host_ms) == ((3.0, 6.0, 1.0), 1.75)
    phases.mark()
    phases.mark()
    assert phases.flush() == (1.0,)
    assert phases.host_ms == pytest.approx(0.1)


def test_on_cpu_the_host_has_no_time_of_its_own() -> None:
    phases = timing.phase_clock(CPU)
    phases.mark()
    phases.mark()
    assert len(phases.flush()) == 1
    assert math.isnan(phases.host_ms)


# ---------------------------------------------------------------- what is said of it


def always(*step: float) -> Callable[[], Stepper]:
    return lambda: Stepper(lambda: step, lambda: Traffic(100, 10), 7, 4096)


def imagined(make: dict[str, Callable[[], Stepper]], graph: bool = False) -> ContestTime:
    return measure(Contest("", ("digits",), 64, CPU, make, graph=graph), BenchConfig(), 60.0, ignore)


EAGER = {"none": always(2.0, 1.0, 0.5, 0.5, 1.9), "batch": always(4.0, 2.0, 1.0, 1.0, 1.0)}
REPLAYED = {"none": always(2.0, NAN, NAN, NAN, 0.1), "batch": always(3.0, NAN, NAN, NAN, 0.1)}


def notes(found: ContestTime, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    lines = table(found, width, monkeypatch)
    assert max(map(len, lines)) <= width
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_names_what_is_bound_by_launches(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = notes(imagined(EAGER), width, monkeypatch)
    assert "Bound by launches: none (95%). The host takes" in said
    assert "bench.graph=true times them without launches." in said
    both = imagined({"none": always(2.0, NAN, NAN, NAN, 1.9), "batch": always(2.0, NAN, NAN, NAN, 2.0)}, graph=True)
    said = notes(both, width, monkeypatch)
    assert "Bound by launches: none (95%), batch (100%)." in said
    assert "bench.graph=true" not in said
    for unbound in (imagined(REPLAYED), imagined({"none": always(2.0, 1.0, 0.5, 0.5)})):
        assert "launches" not in notes(unbound, width, monkeypatch)


def test_the_table_of_replays_has_no_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = table(imagined(REPLAYED, graph=True), 120, monkeypatch)
    row = next(line for line in lines if line.startswith("batch"))
    assert row.split()[:6] == ["batch", "3.000", "1.500", "(1.500–1.500)", "1.000", "21,333"]
    assert "ms" not in " ".join(next(line for line in lines if line.startswith("arm")).split()[3:])
    assert "replayed from a CUDA graph" in " ".join(lines)


def test_formats_have_the_hosts_time_and_leave_out_unknown_phases() -> None:
    def shown(form: str, found: ContestTime) -> str:
        return TIDY_FORMATS[form]({}, [figures(found, arm) for arm in found.arms])

    none, batch = json.loads(shown("json", imagined(EAGER)))["rows"]
    keys = ("forward_ms", "host_ms", "launch_bound", "graph")
    assert [[row[key] for key in keys] for row in (none, batch)] == [[1.0, 1.9, True, False], [2.0, 1.0, False, False]]
    replayed = imagined(REPLAYED, graph=True)
    (row, _) = json.loads(shown("json", replayed))["rows"]
    assert [row[key] for key in keys] == [None, 0.1, False, True]
    (row, _) = csv.DictReader(io.StringIO(shown("csv", replayed)))
    assert [row[key] for key in keys] == ["", "0.1", "False", "True"]
    (row, _) = csv.DictReader(io.StringIO(shown("csv", imagined({"a": always(2.0, 1.0), "b": always(2.0, 1.0)}))))
    assert [row[key] for key in keys] == ["1.0", "", "", "False"]


# ---------------------------------------------------------------- what cannot be captured is left out


def refused() -> Stepper:
    raise IncompatibleError("cannot be captured")


def test_what_cannot_be_made_is_left_out_with_a_sentence() -> None:
    found = imagined({"population": refused, **EAGER})
    assert [arm.label for arm in found.arms] == ["none", "batch"]
    assert found.left_out == ("left out: population: cannot be captured",)
    assert (found.arms[1].ratio.value, found.control.value) == (2.0, 1.0)  # the first that is left is the baseline
    with pytest.raises(IncompatibleError, match="nothing to measure\nleft out: population: cannot") as error:
        imagined({"population": refused})
    assert error.value.exit_code == 2


def test_the_record_is_of_the_arms_that_were_timed(tmp_path: Path) -> None:
    found = sections("norm=none,population,batch")
    make = {"none": REPLAYED["none"], "population": refused, "batch": REPLAYED["batch"]}
    folder = record(found, [imagined(make, graph=True)], tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "bench.csv", "rounds.csv"]
    runs, _ = read_runs([folder])
    assert [run.config["norm.name"] for run in runs] == ["none", "batch"]
    (section,) = compare([folder]).sections
    assert [row.label for row in section.rows] == ["none", "batch"]
    assert section.rows[1].metrics["step_ratio"].value == 1.5
    summary = json.loads((folder / "1" / "summary.json").read_text())["bench"]
    assert (summary["forward_ms"], summary["host_ms"], summary["launch_bound"]) == (None, 0.1, False)
    assert summary["graph"] is True
    shown = bnlab("show", str(folder / "1"), cwd=tmp_path)
    assert (shown.returncode, "forward" in shown.stdout) == (0, False), shown.stderr


def test_replayed_and_eager_steps_of_an_arm_are_two_arms(tmp_path: Path) -> None:
    found = sections("norm=none,batch")
    eager, replayed = ({key: timed[key] for key in ("none", "batch")} for timed in (EAGER, REPLAYED))
    folders = [
        record(found, [imagined(eager)], tmp_path / "eager"),
        record(found, [imagined(eager)], tmp_path / "again"),
        record(found, [imagined(replayed, graph=True)], tmp_path / "replayed"),
    ]
    (section,) = compare(folders).sections
    assert section.changed == ["norm.name", "bench.graph"]
    ratios = {(row.arm["norm.name"], row.arm["bench.graph"]): row.metrics["step_ratio"].value for row in section.rows}
    assert ratios == {("none", False): 1.0, ("none", True): 1.0, ("batch", False): 2.0, ("batch", True): 1.5}
    (one,) = compare(folders, where=["graph=true"]).sections
    assert [(row.arm["norm.name"], row.metrics["step_ratio"].value) for row in one.rows] == [
        ("none", 1.0),
        ("batch", 1.5),
    ]
    (by,) = compare(folders, by=["bench.graph"]).sections
    assert by.changed == ["bench.graph"]
    assert any("2 runs left out" in note or "2 earlier" in note for note in section.notes), section.notes


# ---------------------------------------------------------------- the capture, on a CUDA that only pretends


class PretendedCuda:
    """Runs what is captured at once, and in a replay looks at what the captured step would read."""

    def __init__(self, patch: pytest.MonkeyPatch, waits: bool = False) -> None:
        self.mode, self.capturing = "default", False
        self.steps: list[str] = []
        self.replayed: list[Tensor] = []
        self._waits = waits
        self._input = torch.empty(0)
        stream = SimpleNamespace(wait_stream=lambda other: None)
        patch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self._replay))
        patch.setattr(torch.cuda, "Stream", lambda device: stream)
        patch.setattr(torch.cuda, "current_stream", lambda device: stream)
        patch.setattr(torch.cuda, "stream", self._on)
        patch.setattr(torch.cuda, "graph", self._capture)
        patch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode))
        patch.setattr(stepping, "train_step", self._step)

    @contextmanager
    def _on(self, stream: object) -> Iterator[None]:
        yield

    @contextmanager
    def _capture(self, graph: object, stream: object) -> Iterator[None]:
        self.capturing = True
        yield
        self.capturing = False

    def _step(self, *arguments: Any) -> Tensor:
        if self._waits and self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nand more")
        self.steps.append("captured" if self.capturing else self.mode)
        self.optimizer, self._input = arguments[1], arguments[3]
        return loop.train_step(*arguments)

    def _replay(self) -> None:
        self.replayed.append(self._input.clone())


def one_of(norm: str, *overrides: str, device: torch.device = CPU) -> tuple[Callable[[bool], Stepper], list[Batch]]:
    config = next(arm.config for arm in sections(f"norm=none,{norm}", *overrides)[0].arms if arm.label == norm)
    bundle = bundle_of(config.data)
    training_set = device_batches(config, bundle, bundle.train, device, training=True)
    batches = first_batches(training_set)
    return lambda graph: stepper(config, bundle, training_set, batches, device, graph), batches


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_each_replay_reads_the_next_batch(optim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, batches = one_of("batch", f"optim={optim}")
    cuda = PretendedCuda(monkeypatch)
    one = make(True)
    assert (cuda.steps, cuda.mode) == (["default", "default", "error", "captured"], "default")
    found: list[Figures] = [one.step() for _ in range(3)]
    assert len(cuda.steps) == 4  # a replay takes no step of its own
    assert all(torch.equal(seen, images) for seen, (images, _) in zip(cuda.replayed, batches[1:], strict=False))
    assert len(cuda.replayed) == 3
    assert all(step > 0 and all(map(math.isnan, phases)) for step, *phases in found)
    assert all(group.get("capturable", True) for group in cuda.optimizer.param_groups)
    monkeypatch.undo()
    eager = make(False)
    eager.step()
    assert one.traffic() == eager.traffic()


def test_a_step_that_waits_for_the_device_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = one_of("batch")
    cuda = PretendedCuda(monkeypatch, waits=True)
    with pytest.raises(
        IncompatibleError, match=r"^cannot be captured in a CUDA graph: called a synchronizing \w+ operation$"
    ):
        make(True)
    assert (cuda.steps, cuda.mode) == (["default", "default"], "default")


@pytest.mark.parametrize("overrides", [[], ["norm.every=1000"], ["norm.through=true"]])
def test_steps_that_read_the_training_set_are_not_captured(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, _ = one_of("population", *overrides)
    cuda = PretendedCuda(monkeypatch)
    with pytest.raises(IncompatibleError, match="read the training set"):
        make(True)
    assert cuda.steps == []


def test_statistics_taken_once_are_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = one_of("frozen")
    PretendedCuda(monkeypatch)
    assert make(True).num_parameters > 0


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_graphs_are_refused_on_cpu(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that auto is the CPU on any machine
    done = bnlab("bench", *SMALL, f"trainer.device={device}", "bench.graph=true", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bench.graph=true: graphs exist on CUDA only\nomit it\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [{"layers": True}, {"layers": False, "workers": 2}])
def test_graphs_are_of_whole_steps_in_one_process(other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"bench\.graph=true: cannot be combined with --layers or --workers"):
        bench([*SMALL, "bench.graph=true"], **other)


# ---------------------------------------------------------------- on CUDA

CUDA = torch.device("cuda", 0)


@needs_cuda
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("norm", ["none", "batch", "renorm"])
def test_replayed_steps_train_as_eager_ones_do(norm: str, optim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    make, batches = one_of(norm, f"optim={optim}", device=CUDA)
    replays = make(True)
    for _ in range(5):
        replays.step()
    eager = make(False)
    taken = iter([*[batches[0]] * 3, *batches[1:6]])  # what the captured one was given, its warm-up included

    def on_those(*given: Any) -> Tensor:
        return loop.train_step(*(given[:3] + next(taken) + given[5:]))

    monkeypatch.setattr(stepping, "train_step", on_those)
    for _ in range(8):
        eager.step()
    replayed, stepped = map(weights, watched.models)
    assert replayed.keys() == stepped.keys()
    for name, value in stepped.items():
        torch.testing.assert_close(replayed[name], value, rtol=1e-3, atol=1e-4)


@needs_cuda
def test_a_bench_of_replays_on_cuda(tmp_path: Path) -> None:
    keys = [*SMALL, "trainer.device=cuda", "norm=none,batch,population", "bench.seconds=20", "bench.precision=0.9"]
    eager, replayed = (
        bnlab("bench", *keys, f"bench.graph={graph}", "--format", "json", cwd=tmp_path) for graph in ("false", "true")
    )
    assert (eager.returncode, replayed.returncode) == (0, 0), eager.stderr + replayed.stderr
    rows = json.loads(eager.stdout)["rows"]
    assert [row["arm"] for row in rows] == ["none", "batch", "population"]
    assert all(row["host_ms"] > 0 and row["forward_ms"] > 0 and row["launch_bound"] in (True, False) for row in rows)
    rows = json.loads(replayed.stdout)["rows"]
    assert [row["arm"] for row in rows] == ["none", "batch"]
    assert all(row["forward_ms"] is None and row["host_ms"] > 0 and row["graph"] for row in rows)


@needs_cuda
def test_every_strategy_is_captured_or_left_out_on_cuda() -> None:
    (section,) = sections("norm=glob(*)", "trainer.device=cuda")
    found = measure(contest(section, graph=True), BenchConfig(precision=math.inf, rounds=6), 120.0, ignore)
    assert {"none", "batch", "layer", "group"} <= {arm.label for arm in found.arms}
    assert len(found.arms) + len(found.left_out) == len(section.arms)
