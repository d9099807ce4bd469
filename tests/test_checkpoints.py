"""Checkpoints: whatever happens to them, a good one loads or the run says what is wrong and touches nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cli import bnlab
from helpers_resume import MLP, SHORT, assert_equal, interrupted
from helpers_training import train

from bnlab.errors import EnvironmentFault, RecordError
from bnlab.record.plain_files import write_bytes
from bnlab.training import checkpoint, loop
from bnlab.training.callbacks import Callback
from bnlab.training.job import JobResult

RUN = (*SHORT, *MLP, "norm=batch", "optim=adamw", "optim.lr=0.01")
NAMES = ("checkpoint.pt", "checkpoint.prev.pt", "checkpoint.sha256")


def state(step: int) -> dict[str, Any]:
    return {"step": step, "w": torch.full((50_000,), float(step))}


class Notes(Callback):
    def __init__(self) -> None:
        self.said: list[str] = []

    def noted(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "INTERVAL_SECONDS", 0.0)


# ---------------------------------------------------------------- killed while saving

SAVING = """
import sys, torch
from pathlib import Path
from bnlab.training import checkpoint
torch.set_num_threads(1)
folder = Path(sys.argv[1])
step = checkpoint.load(folder)["step"]
print("ready", flush=True)
while True:
    step += 1
    checkpoint.save(folder, {"step": step, "w": torch.full((50_000,), float(step))})
"""
FORKING = """
import os, sys
sys.argv = ["-", sys.argv[1]]
import torch, bnlab.training.checkpoint
torch.set_num_threads(1)
for line in sys.stdin:  # a child a line: it saves until it is killed
    if not (child := os.fork()):
        exec(compile(SAVING, "saving", "exec"))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def killed_while_saving(folder: Path, times: int) -> None:
    """Kill a process that saves all the time at random moments; what is left must load each time."""
    draw, reached, began = random.Random(0), list[int](), time.monotonic()
    checkpoint.save(folder, state(0))
    longest = max(0.03, 2 * (time.monotonic() - began))  # on a busy machine a save takes longer
    script = f"SAVING = {SAVING!r}\n{FORKING}"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(times):
            process.stdin.write("again\n")
            process.stdin.flush()
            said = {process.stdout.readline().strip(), process.stdout.readline().strip()}
            (child,) = said - {"ready"}
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.0, longest))
            os.kill(int(child), signal.SIGKILL)
            assert process.stdout.readline() == "gone\n"
            loaded = checkpoint.load(folder, pytest.fail)
            assert loaded["w"].unique().tolist() == [float(loaded["step"])]
            digest = hashlib.sha256((folder / "checkpoint.pt").read_bytes()).hexdigest()
            assert digest in (folder / "checkpoint.sha256").read_text().split()
            reached.append(loaded["step"])
        process.stdin.close()
    assert reached == sorted(reached)
    assert reached[-1] > times / 8  # some were saved, so some were killed while saving


@pytest.mark.slow
def test_a_checkpoint_loads_after_any_kill(tmp_path: Path) -> None:
    killed_while_saving(tmp_path, 40)


@contextmanager
def dying_at(count: int) -> Iterator[None]:
    """Raise in place of the `count`-th call that changes a folder or a file, as if the process were gone."""
    kept = {name: getattr(os, name) for name in ("replace", "link", "unlink", "fsync")}
    calls = 0

    def counted(name: str) -> Callable[..., Any]:
        def call(*values: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= count:  # nothing more is done after it, no tidying up either
                raise KeyboardInterrupt
            return kept[name](*values, **more)

        return call

    with pytest.MonkeyPatch.context() as patched:
        for name in kept:
            patched.setattr(os, name, counted(name))
        yield


def test_two_deaths_in_a_row_at_any_two_places_of_a_save(tmp_path: Path) -> None:
    tried = 0
    for first in range(1, 12):
        for second in range(1, 12):
            folder = tmp_path / f"{first}-{second}"
            folder.mkdir()
            checkpoint.save(folder, state(0))
            checkpoint.save(folder, state(1))
            step = 1
            for count in (first, second):
                try:
                    with dying_at(count):
                        checkpoint.save(folder, state(step + 1))
                except KeyboardInterrupt:
                    tried += 1
                step = checkpoint.load(folder)["step"]
                assert step in (1, 2, 3)
    assert tried > 100


def test_a_damaged_newest_does_not_push_the_good_previous_out(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step))
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    for count in range(1, 12):
        try:
            with dying_at(count):
                checkpoint.save(tmp_path, state(3))
        except KeyboardInterrupt:
            assert checkpoint.load(tmp_path)["step"] in (1, 3)
    assert checkpoint.load(tmp_path)["step"] == 3


# ---------------------------------------------------------------- damaged


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    new = {"truncated": path.read_bytes()[:-100], "empty": b"", "bit-flipped": bytes(content), "text": b"no weights\n"}
    path.write_bytes(new[kind])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(RUN, folder).state == "done"
    return folder


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run with checkpoints of its steps 3 and 9."""
    interrupted(RUN, tmp_path / "run", step=3)
    interrupted(RUN, tmp_path / "run", step=9)
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["truncated", "empty", "bit-flipped", "text"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(stopped: Path, whole: Path, kind: str) -> None:
    damage(stopped / "checkpoint.pt", kind)
    notes = Notes()
    assert train(RUN, stopped, callback=notes).state == "done"
    assert notes.said == [f"{stopped / 'checkpoint.pt'}: sha256 differs; going on from checkpoint.prev.pt"]
    assert "going on from step 3" in (stopped / "run.log").read_text()
    assert_equal(stopped, whole)


@pytest.mark.slow
def test_two_damaged_checkpoints_are_left_alone(stopped: Path, whole: Path) -> None:
    damage(stopped / "checkpoint.pt", "truncated")
    damage(stopped / "checkpoint.prev.pt", "bit-flipped")
    kept = [*NAMES, "steps.csv", "evals.csv", "layers.csv", "times.csv"]
    before = {name: (stopped / name).read_bytes() for name in kept}
    ending = train(RUN, stopped)
    assert ending.state == "failed"
    for name in NAMES[:2]:
        assert f"{stopped / name}: sha256 differs" in ending.reason
    assert "--from-scratch" in ending.reason
    assert {name: (stopped / name).read_bytes() for name in kept} == before

    place = stopped.parent
    done = bnlab("resume", "run", cwd=place)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "checkpoint.pt: sha256 differs" in done.stderr
    assert "--from-scratch" in done.stderr
    assert {name: (stopped / name).read_bytes() for name in kept} == before

    done = bnlab("resume", "run", "--from-scratch", cwd=place)
    assert done.returncode == 0, done.stderr
    assert_equal(stopped, whole)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_checkpoint_that_would_run_code_is_refused_though_its_digest_is_right(
    stopped: Path, whole: Path, how: str
) -> None:
    trap = stopped.parent / "executed"
    newest = stopped / "checkpoint.pt"
    if how == "pickle":
        newest.write_bytes(pickle.dumps(Touch(trap)))
    else:
        torch.save(checkpoint.load(stopped) | {"more": Touch(trap)}, newest)
    good = hashlib.sha256((stopped / "checkpoint.prev.pt").read_bytes()).hexdigest()
    digest = hashlib.sha256(newest.read_bytes()).hexdigest()
    (stopped / "checkpoint.sha256").write_text(f"{digest}\n{good}\n")
    notes = Notes()
    assert train(RUN, stopped, callback=notes).state == "done"
    assert re.search(r"checkpoint.pt: refused \(.+\); going on from checkpoint.prev.pt", notes.said[0])
    assert not trap.exists()
    assert_equal(stopped, whole)

    for name in NAMES[:2]:
        (stopped / name).write_bytes(pickle.dumps(Touch(trap)))
    (stopped / "checkpoint.sha256").write_text(hashlib.sha256(pickle.dumps(Touch(trap))).hexdigest())
    status = json.loads((stopped / "status.json").read_text())
    write_bytes(stopped / "status.json", json.dumps(status | {"state": "interrupted"}).encode())
    ending = train(RUN, stopped)
    assert (ending.state, ending.reason.count("refused")) == ("failed", 2)
    assert not trap.exists()


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(400 * 2**30)


def deflated(path: Path) -> None:
    stored, content = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(2**24, dtype=torch.uint8)}, stored)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry), zipfile.ZIP_DEFLATED)  # with its date, so that all are alike
    path.write_bytes(content.getvalue())


UNUSUAL = {
    "sparse": (sparse, "refused (400.0 GiB, at most 4 are read)"),
    "deflated": (deflated, "refused (unpacks to more than its "),
    "fifo": (os.mkfifo, "cannot be read: not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "cannot be read: "),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_checkpoint_is_a_regular_file_of_bounded_size_that_does_not_grow(tmp_path: Path, kind: str) -> None:
    make, message = UNUSUAL[kind]
    for name in NAMES[:2]:
        make(tmp_path / name)
    content = b"" if kind != "deflated" else (tmp_path / NAMES[0]).read_bytes()
    (tmp_path / NAMES[2]).write_text(hashlib.sha256(content).hexdigest())
    with pytest.raises(RecordError, match=re.escape(f"{NAMES[1]}: {message}")):
        checkpoint.load(tmp_path)
    with pytest.raises(RecordError, match=re.escape(message)) as refused:
        checkpoint.load_file(tmp_path / NAMES[0])
    assert ("save model.state_dict()" in str(refused.value)) == (kind in ("sparse", "deflated"))


def test_a_digest_beside_a_file_of_weights_is_a_regular_file_too(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    (tmp_path / "link.pt").symlink_to("w.pt")
    assert checkpoint.load_file(tmp_path / "link.pt")["w"].tolist() == [1, 1]
    os.mkfifo(tmp_path / "w.pt.sha256")
    with pytest.raises(RecordError, match=r"w\.pt\.sha256: cannot be read: not a regular file"):
        checkpoint.load_file(tmp_path / "w.pt")


@pytest.mark.parametrize("wrong", [[], {"step": 3}, {"torch": 1, "tables": {"steps": -1}}], ids=repr)
def test_a_checkpoint_of_something_else_ends_in_a_message(stopped: Path, wrong: Any) -> None:
    for name in NAMES[:2]:
        torch.save(wrong, stopped / name)
    (stopped / "checkpoint.sha256").write_text(hashlib.sha256((stopped / "checkpoint.pt").read_bytes()).hexdigest())
    rows = (stopped / "steps.csv").read_bytes()
    ending = train(RUN, stopped)
    assert ending.state == "failed"
    assert (stopped / "steps.csv").read_bytes() == rows


@pytest.mark.slow
def test_tables_shorter_than_the_checkpoint_counts_on(stopped: Path, whole: Path) -> None:
    rows = (stopped / "evals.csv").read_bytes()
    (stopped / "evals.csv").write_bytes(rows[:-30])
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.suffix in (".csv", ".pt")}
    ending = train(RUN, stopped)
    assert ending.state == "failed"
    assert f"{stopped / 'evals.csv'}: {len(rows) - 30} bytes, the checkpoint counts on {len(rows)}" in ending.reason
    assert "--from-scratch" in ending.reason
    after = {path.name: path.read_bytes() for path in stopped.iterdir() if path.suffix in (".csv", ".pt")}
    assert after == before
    done = bnlab("resume", "run", "--from-scratch", cwd=stopped.parent)
    assert done.returncode == 0, done.stderr
    assert_equal(stopped, whole)


# ---------------------------------------------------------------- no room, no permission


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as on a full disk; Python ignores SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_a_checkpoint_leaves_those_before(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step))
    with files_up_to(100_000), pytest.raises(EnvironmentFault, match=r"cannot write .*checkpoint\.pt: File too large"):
        checkpoint.save(tmp_path, state(3))
    assert checkpoint.load(tmp_path, pytest.fail)["step"] == 2
    assert sorted(os.listdir(tmp_path)) == sorted(NAMES)


@pytest.mark.parametrize("size", [60, 400, 1500, 3500, 8000])
def test_a_run_on_a_full_disk_fails_and_goes_on_later(stopped: Path, whole: Path, size: int) -> None:
    """The bounds meet, from the smallest on, the lists of digests, tables, the status, and the checkpoint."""
    ending: JobResult
    with files_up_to(size):
        ending = train(RUN, stopped)
    assert ending.state == "failed"
    assert "File too large" in ending.reason
    assert str(stopped) in ending.reason
    assert not list(stopped.glob(".*.tmp"))
    assert train(RUN, stopped).state == "done"
    assert_equal(stopped, whole)


def test_a_real_full_disk_is_named_by_the_command_line(tmp_path: Path) -> None:
    limit = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)); "
    done = subprocess.run(
        [sys.executable, "-c", limit + "runpy.run_module('bnlab', run_name='__main__')", "train", *RUN],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "checkpoint.pt: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*/.*.tmp"))
