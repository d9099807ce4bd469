"""One job on a GPU at a time: real processes with devices that are names only, and a CUDA that only pretends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_cli import BNLAB, ROOT, environment
from helpers_training import queued, train

from bnlab.cli import doctor
from bnlab.config import compose
from bnlab.distributed import ALONE, Workers
from bnlab.errors import EnvironmentFault
from bnlab.experiment import gpu_lock
from bnlab.experiment import run as experiment_run
from bnlab.experiment.gpu_lock import claimed, held, lock_folder
from bnlab.experiment.setup import device_held
from bnlab.experiment.trained_model import of_run
from bnlab.runner import worker_main
from bnlab.runner.supervisor import JobOptions, Supervisor
from bnlab.runner.worker_main import send
from bnlab.training import checkpoint
from bnlab.training.callbacks import Callback
from bnlab.training.job import Job, JobResult, Stop

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
QUICK = ["trainer.steps=30", "model=mlp", "model.widths=[16]", "data.batch_size=32", "eval.probe_samples=256"]


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock in a folder of the test, not in that of a training which may run beside it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def never() -> None:
    raise AssertionError("nothing was to be waited for")


# ---------------------------------------------------------------- processes

WORK = """
import os, sys, time
from pathlib import Path
from bnlab.experiment.gpu_lock import claimed, lock_folder
from bnlab.training.job import Stop
place = Path(sys.argv[1])
for _ in range(5):
    with claimed(sys.argv[2:], lock_folder(), Stop(), lambda: None) as number:
        busy = place / sys.argv[2 + number]
        os.close(os.open(busy, os.O_CREAT | os.O_EXCL))  # fails where another is at work
        time.sleep(0.05)
        busy.unlink()
    print(sys.argv[2 + number])
"""
HOLD = """
import os, sys, time
from bnlab.experiment.gpu_lock import claimed, lock_folder
from bnlab.training.job import Stop
with claimed(sys.argv[1:], lock_folder(), Stop(), lambda: print("waiting", flush=True)) as number:
    if os.fork() == 0:
        time.sleep(3600)  # a child that has inherited the open file
    print(number, flush=True)
    sys.stdin.readline()
print("over", flush=True)
sys.stdin.readline()
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


@contextmanager
def holder(*names: str) -> Iterator[subprocess.Popen[str]]:
    process = start(HOLD, *names)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end_turn(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.slow
def test_never_two_on_one_device_and_all_have_their_turn(tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    busy.mkdir()
    processes = [start(WORK, str(busy), *order) for order in (["a", "b"], ["b", "a"]) * 3]
    turns = []
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        turns += out.split()
    assert len(turns) == 30
    assert set(turns) == {"a", "b"}
    assert not list(busy.iterdir())


def test_the_one_that_waits_goes_on_when_the_holder_is_killed() -> None:
    with holder("a") as first:
        assert line_of(first) == "0"
        assert held("a", lock_folder())
        assert not held("b", lock_folder())
        with holder("a") as second:
            assert line_of(second) == "waiting"
            os.killpg(first.pid, signal.SIGKILL)
            assert line_of(second) == "0"
            assert held("a", lock_folder())


def test_a_device_is_free_after_the_turn_though_a_child_of_the_holder_lives_on() -> None:
    with holder("a") as first:
        assert line_of(first) == "0"
        end_turn(first)
        assert line_of(first) == "over"
        assert not held("a", lock_folder())


def test_an_exception_frees_a_device() -> None:
    with suppress(ZeroDivisionError), claimed(["a"], lock_folder(), Stop(), never):
        assert held("a", lock_folder())
        raise ZeroDivisionError
    assert not held("a", lock_folder())


@pytest.mark.parametrize("before", [True, False])
def test_a_request_to_stop_ends_the_wait(before: bool) -> None:
    stop, told = Stop(), []
    usual = signal.signal(signal.SIGALRM, lambda *_: stop.request())
    try:
        with claimed(["a"], lock_folder(), Stop(), never), ExitStack() as waiter:
            if before:
                stop.request()
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            with pytest.raises(KeyboardInterrupt):
                waiter.enter_context(claimed(["a"], lock_folder(), stop, lambda: told.append("waiting")))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, usual)
    assert told == ([] if before else ["waiting"])
    assert not held("a", lock_folder())


# ---------------------------------------------------------------- the folder of the locks


def test_the_folder_is_the_users_own() -> None:
    folder = lock_folder()
    assert folder == Path(os.environ["TMPDIR"], f"bnlab-{os.getuid()}")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert lock_folder() == folder


def link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    path.symlink_to(elsewhere)


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (link, "is a symbolic link"),
        (Path.touch, "is not a folder"),
        (open_to_all, r"is open to others \(mode 0777\)"),
    ],
)
def test_a_hostile_folder_is_refused(make: Any, wrong: str) -> None:
    make(Path(os.environ["TMPDIR"], f"bnlab-{os.getuid()}"))
    with pytest.raises(EnvironmentFault, match=rf"bnlab-\d+: {wrong}; the locks on GPUs lie there.*\nremove it, or"):
        lock_folder()


def test_a_folder_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    Path(os.environ["TMPDIR"], "bnlab-12345").mkdir(mode=0o700)
    with pytest.raises(EnvironmentFault, match=rf"belongs to another user \({owner}\)"):
        lock_folder()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (lock_folder() / "gpu-a.lock").symlink_to(tmp_path / "target")
    with pytest.raises(EnvironmentFault, match=r"cannot write .*gpu-a\.lock"), ExitStack() as stack:
        stack.enter_context(claimed(["a"], lock_folder(), Stop(), never))
    assert not (tmp_path / "target").exists()


def test_a_file_system_without_locks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(gpu_lock.fcntl, "flock", flock)
    with pytest.raises(EnvironmentFault, match="need a file system with flock: No locks available\nset TMPDIR"):
        held("a", lock_folder())


# ---------------------------------------------------------------- a CUDA that only pretends


class PretendedCuda:
    """So many devices, called `uuid-0` and so on; keeps what it was told to do."""

    def __init__(self, patch: pytest.MonkeyPatch, count: int) -> None:
        self.current, self.calls = 0, list[str]()

        def current(device: torch.device) -> None:
            self.current = device.index

        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: count)
        patch.setattr(torch.cuda, "current_device", lambda: self.current)
        patch.setattr(torch.cuda, "set_device", current)
        patch.setattr(torch.cuda, "synchronize", lambda device: self.calls.append(f"synchronize {device}"))
        patch.setattr(torch.cuda, "empty_cache", lambda: self.calls.append(f"empty {self.current}"))
        patch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda n: SimpleNamespace(name="A GPU", total_memory=8 * 2**30, uuid=f"uuid-{n}"),
        )


class Notes(Callback):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.texts = list[str]()

    def noted(self, text: str) -> None:
        self.texts.append(text)


JOB = Job(Path("runs/x"), label="seed=3")


def one(name: str, workers: Workers = ALONE, stop: Stop | None = None, notes: Callback | None = None) -> Any:
    return device_held(name, workers, stop or Stop(), JOB, notes or Notes())


def test_jobs_side_by_side_have_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, notes = PretendedCuda(monkeypatch, 3), Notes()
    with one("cuda:1") as first, one("auto", notes=notes) as second, one("cuda", notes=notes) as third:
        assert [str(device) for device in (first, second, third)] == ["cuda:1", "cuda:0", "cuda:2"]
        assert cuda.current == 2
    assert cuda.calls[:2] == ["synchronize cuda:2", "empty 2"]
    assert notes.texts == []
    assert not any(held(f"uuid-{n}", lock_folder()) for n in range(3))


def test_a_process_comes_back_to_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendedCuda(monkeypatch, 3)
    with one("cuda:2"):
        pass
    with one("auto") as device:
        assert device == torch.device("cuda", 2)


@pytest.mark.parametrize(
    ("name", "taken", "said"),
    [
        ("cuda:1", [1], "cuda:1 is"),
        ("cuda:0", [0, 1], "cuda:0 is"),
        ("auto", [0, 1], "all 2 CUDA devices are"),
        ("cuda", [1, 0], "all 2 CUDA devices are"),
    ],
)
def test_a_job_waits_and_says_so_once(name: str, taken: list[int], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PretendedCuda(monkeypatch, 2)
    notes, stop = Notes(), Stop()
    usual = signal.signal(signal.SIGALRM, lambda *_: stop.request())
    try:
        with ExitStack() as stack:
            for number in taken:
                stack.enter_context(claimed([f"uuid-{number}"], lock_folder(), Stop(), never))
            signal.setitimer(signal.ITIMER_REAL, 1.5)
            with pytest.raises(KeyboardInterrupt):
                stack.enter_context(one(name, stop=stop, notes=notes))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, usual)
    assert notes.texts == [f"seed=3: {said} in use by other jobs; waiting"]


def test_a_wait_does_not_count_for_the_time_out(tmp_path: Path) -> None:
    """The worker's side of the pipe tells what it would tell, the supervisor follows."""
    ours, theirs = Pipe()
    job_runner, notes, stopped = Supervisor(JobOptions(timeout=0.5)), Notes(), list[str]()
    job_runner.callback, job_runner._pipe = notes, ours

    def ended(job: Job, reason: str = "") -> JobResult:
        stopped.append(reason)
        return JobResult("killed", reason)

    job_runner._stopped = ended  # type: ignore[method-assign]
    teller = worker_main._PipeCallback(theirs)

    def work(*, waits: bool) -> None:
        send(theirs, {"counts": True})
        if waits:
            teller.waits("all 2 CUDA devices are in use")
            time.sleep(1.2)
            teller.job_started(0, "seed=3", 10)
        time.sleep(0.2 if waits else 1.2)
        send(theirs, {"result": {"state": "done"}})

    for waits in (True, False):
        worker_side = Thread(target=work, kwargs={"waits": waits})
        worker_side.start()
        assert job_runner._watched(JOB, []).state == ("done" if waits else "killed")
        worker_side.join()
    assert notes.texts == ["all 2 CUDA devices are in use"]
    assert stopped == ["took longer than 0.5 s (--timeout)"]


def test_a_death_by_any_signal_has_a_name() -> None:
    for number, name in ((9, "SIGKILL, by the system if memory was short"), (11, "SIGSEGV"), (40, "signal 40")):
        job_runner = Supervisor(JobOptions())
        job_runner._process = subprocess.Popen([sys.executable, "-c", f"import os; os.kill(os.getpid(), {number})"])
        assert job_runner._death() == ("killed", f"killed by {name}")


def test_workers_of_one_training_and_the_cpu_claim_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendedCuda(monkeypatch, 2)
    with claimed(["uuid-1"], lock_folder(), Stop(), never):
        with one("cuda", Workers(rank=1, size=2, local_rank=1, local_size=2)) as device:
            assert device == torch.device("cuda", 1)
        with one("cpu") as device:
            assert device == torch.device("cpu")


def tree_of(*overrides: str) -> dict[str, Any]:
    (tree,) = compose.jobs([*QUICK, *overrides], multirun=False)
    return tree


def test_preflight_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendedCuda(monkeypatch, 1)
    with claimed(["uuid-0"], lock_folder(), Stop(), never):
        assert len(experiment_run.preflight([tree_of("trainer.device=cuda"), tree_of("trainer.device=auto")])) == 2


def run(folder: Path, stop: Stop | None = None) -> JobResult:
    return experiment_run.run(queued([*QUICK, "trainer.device=auto"], folder), Callback(), stop)


def test_a_job_holds_its_device_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = PretendedCuda(monkeypatch, 2)
    seen = []

    def training(*given: Any) -> Any:
        seen.append((str(given[-1]), [held(f"uuid-{n}", lock_folder()) for n in (0, 1)]))
        if len(seen) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return SimpleNamespace(error="loss not finite at step 3")

    monkeypatch.setattr(experiment_run, "_train", training)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**29)
    ending = run(tmp_path / "a")
    assert (ending.state, ending.reason) == (
        "failed",
        "out of memory at data.batch_size=32, peak 1.5 GiB\ntry a smaller batch",
    )
    with claimed(["uuid-0"], lock_folder(), Stop(), never):
        assert run(tmp_path / "b").state == "diverged"
    assert seen == [("cuda:0", [True, False]), ("cuda:1", [True, True])]
    assert cuda.calls == ["synchronize cuda:0", "empty 0", "synchronize cuda:1", "empty 1"]
    assert not any(held(f"uuid-{n}", lock_folder()) for n in (0, 1))


def test_a_job_that_is_stopped_as_it_waits_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PretendedCuda(monkeypatch, 1)
    stop = Stop()
    stop.request()
    with claimed(["uuid-0"], lock_folder(), Stop(), never), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", stop)
    assert '"state": "interrupted"' in (tmp_path / "a" / "status.json").read_text()


def test_a_hostile_folder_costs_a_job_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PretendedCuda(monkeypatch, 1)
    link(Path(os.environ["TMPDIR"], f"bnlab-{os.getuid()}"))
    ending = run(tmp_path / "a")
    assert (ending.state, "is a symbolic link" in ending.reason) == ("failed", True)


def test_doctor_says_which_gpu_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendedCuda(monkeypatch, 2)
    with claimed(["uuid-1"], lock_folder(), Stop(), never):
        found = [finding for finding in doctor._devices() if finding.subject.startswith("cuda")]
    assert [(finding.subject, finding.state, finding.text) for finding in found] == [
        ("cuda:0", "ok", "A GPU, 8 GiB, free"),
        ("cuda:1", "ok", "A GPU, 8 GiB, a job holds it"),
    ]
    lock_folder().chmod(0o755)
    (first, _) = [finding for finding in doctor._devices() if finding.subject.startswith("cuda")]
    assert first.state == "bad"
    assert "is open to others (mode 0755)" in first.text


# ---------------------------------------------------------------- the command line, with devices that only pretend

PRETEND = """
import glob, importlib.abc, importlib.machinery, os, sys, time
from contextlib import contextmanager
from types import SimpleNamespace

def patch(worker):
    import torch
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 2
    torch.cuda.current_device = lambda: 0
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.get_device_properties = lambda n: SimpleNamespace(uuid=f"uuid-{n}")
    really = worker.device_held

    @contextmanager
    def device_held(*given):
        with really(*given) as device:
            busy = os.path.join(os.environ["BUSY"], str(device.index))
            os.close(os.open(busy, os.O_CREAT | os.O_EXCL))  # fails where another is at work
            logs = os.path.join(os.path.dirname(os.environ["BUSY"]), "runs", "*", "*", "run.log")
            for _ in range(600):  # until a third job waits, however slow the machine is
                if any("waiting:" in open(log).read() for log in glob.glob(logs)):
                    break
                time.sleep(0.05)
            yield torch.device("cpu")
            os.rename(busy, f"{busy}.{time.monotonic_ns()}")

    worker.device_held = device_held

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "bnlab.experiment.run":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), patch(module))
        return spec

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
def test_launchers_and_command_lines_share_the_devices(tmp_path: Path) -> None:
    (tmp_path / "pretend").mkdir()
    (tmp_path / "pretend" / "sitecustomize.py").write_text(PRETEND)
    (tmp_path / "busy").mkdir()
    jobs = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "seed=0,1,2", "name=a"]
    lines = [["train", "-m", *jobs, *QUICK], ["train", "-m", "seed=3,4", "name=b", *QUICK]]
    paths = f"{tmp_path / 'pretend'}:{ROOT}"
    where = environment(PYTHONPATH=paths, BUSY=str(tmp_path / "busy"), OMP_NUM_THREADS="1")
    processes = [
        subprocess.Popen(
            [*BNLAB, *line], cwd=tmp_path, env=where, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for line in lines
    ]
    try:
        for process, count in zip(processes, (3, 2), strict=True):
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            assert out.count(" done ") == count, out
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    names = [path.name for path in (tmp_path / "busy").iterdir()]
    assert len(names) == 5
    assert {name.partition(".")[0] for name in names} == {"0", "1"}
    logs = [path.read_text() for path in tmp_path.glob("runs/*/*/run.log")]
    assert sum(log.count("waiting: all 2 CUDA devices are in use by other jobs") for log in logs) >= 1


# ---------------------------------------------------------------- on CUDA


@needs_cuda
def test_a_run_on_cuda_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    keys = ["model=cnn", "model.widths=[8,16]", "model.dropout=0.3", "norm=batch", "trainer.steps=40"]
    keys += ["data.batch_size=32", "eval.every=0.25", "eval.probe_samples=256", "trainer.device=cuda"]
    torch.use_deterministic_algorithms(True)
    try:
        assert train(keys, tmp_path / "whole").state == "done"
        stop = Stop()

        class Stopper(Callback):
            def advanced(self, step: int, loss: float, images_per_second: float) -> None:
                if step >= 15:
                    stop.request()

        with pytest.raises(KeyboardInterrupt):
            train(keys, tmp_path / "resumed", stop, Stopper())
        assert checkpoint.load(tmp_path / "resumed")["random_cuda"] is not None
        assert train(keys, tmp_path / "resumed").state == "done"
    finally:
        torch.use_deterministic_algorithms(False)
    for table in ("steps.csv", "evals.csv", "layers.csv"):
        assert (tmp_path / "resumed" / table).read_bytes() == (tmp_path / "whole" / table).read_bytes(), table
    assert of_run(tmp_path / "whole", None, ["trainer.device=cpu"]).device.type == "cpu"
    one, other = (checkpoint.load(tmp_path / name)["model"] for name in ("resumed", "whole"))
    assert all(torch.equal(one[name], value) and value.device.type == "cpu" for name, value in other.items())
