"""Files that are whole or absent, folders with one owner, checkpoints that load or are refused."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from threading import Timer
from typing import Any

import pandas
import pytest
import torch

from bnlab.errors import BusyError, EnvironmentFault, RecordError
from bnlab.record import environment
from bnlab.record.plain_files import write_bytes, write_json
from bnlab.record.run_folder import RunFolder, fresh_folder, hold, queue
from bnlab.record.tables import Table
from bnlab.training import checkpoint


def run_folder(path: Path) -> RunFolder:
    queue(path, {"seed": 0}, "seed: 0\n", "0123456789abcdef")
    return RunFolder(path, "0123456789abcdef")


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "kept.json"
    write_json(target, {"a": 1})
    limited = (
        "import resource, signal, sys; from pathlib import Path; from bnlab.record.plain_files import write_bytes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_bytes(Path(sys.argv[1]), b'x' * 5000)"
    )
    done = subprocess.run([sys.executable, "-c", limited, str(target)], capture_output=True, text=True, check=False)
    assert "EnvironmentFault: cannot write" in done.stderr
    assert str(target) in done.stderr
    assert json.loads(target.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["kept.json"]


def test_numbers_that_are_not_finite_are_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - in the words of json
        write_json(tmp_path / "x.json", {"a": math.nan})
    assert os.listdir(tmp_path) == []


def test_floats_come_back_with_the_same_bits(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 1e-300, math.inf, math.nan, 2.0**-1074]
    with closing(Table(tmp_path / "t.csv", ("step", "value"))) as table:
        table.append(enumerate(values))
    rows = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
    back = [float(row["value"]) for row in rows]
    assert str(back) == str(values)
    frame = pandas.read_csv(tmp_path / "t.csv")
    assert frame["value"].tolist()[:2] == values[:2]


def test_folders_made_in_the_same_second_are_apart(tmp_path: Path) -> None:
    folders = {fresh_folder(tmp_path / "runs", "run") for _ in range(20)}
    assert len(folders) == 20
    assert all(re.fullmatch(r"\d{8}-\d{6}-run-[0-9a-f]{6}", folder.name) for folder in folders)


def orders(base: Path, *names: str) -> list[int]:
    """Begin runs in these folders of `base`, and return their orders."""
    return [begun(run_folder(base / name)) for name in names]


def begun(run: RunFolder) -> int:
    run.finish("failed", error="a test")
    order = json.loads((run.path / "status.json").read_text())["order"]
    assert isinstance(order, int)
    return order


def test_runs_are_in_order_though_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [2_000]
    monkeypatch.setattr(time, "time_ns", lambda: now[0])
    sweep, other = (fresh_folder(tmp_path / "runs", name) for name in ("sweep", "other"))
    assert orders(sweep, "0", "1") == [2_000, 2_001]
    now[0] = 500
    assert orders(other.parent, other.name) == [2_002]
    assert orders(sweep, "0", "2") == [2_000, 2_003], "a run that goes on keeps its own"
    now[0] = 9_000
    assert orders(sweep, "3") == [9_000]
    assert orders(tmp_path, "elsewhere") == [9_000], "without other runs beside it"


@pytest.mark.parametrize("content", ["", "x", "-5", "9" * 20, "9" * 5000, "\0", "1e9", "²"])
def test_a_strangers_order_is_not_believed(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    sweep = fresh_folder(tmp_path / "runs", "sweep")
    (tmp_path / "runs/.order").write_text(content)
    assert orders(sweep, "0", "1") == [5, 6]


def test_an_order_that_is_a_link_is_refused(tmp_path: Path) -> None:
    sweep = fresh_folder(tmp_path / "runs", "sweep")
    (tmp_path / "target").write_text("3")
    (tmp_path / "runs/.order").unlink()
    (tmp_path / "runs/.order").symlink_to(tmp_path / "target")
    with pytest.raises(EnvironmentFault, match=re.escape("runs/.order")):
        orders(sweep, "0")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        fresh_folder(tmp_path / "runs", "sweep")
    assert (tmp_path / "target").read_text() == "3"


def test_processes_that_begin_at_once_have_orders_of_their_own(tmp_path: Path) -> None:
    sweep = fresh_folder(tmp_path / "runs", "sweep")
    code = (
        "import sys, time; from pathlib import Path; from bnlab.record.run_folder import next_order\n"
        "time.time_ns = lambda: 7\n"
        "print(*(next_order(Path(sys.argv[1])) for _ in range(500)))"
    )
    at_once = [
        subprocess.Popen([sys.executable, "-c", code, str(sweep / str(i))], stdout=subprocess.PIPE) for i in range(4)
    ]
    found = [int(word) for process in at_once for word in process.communicate()[0].split()]
    assert sorted(found) == list(range(7, 2007))


def test_a_run_folder_has_one_owner(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "a")
    with pytest.raises(BusyError, match="in use by another process"):
        run_folder(tmp_path / "a")
    assert json.loads((tmp_path / "a/status.json").read_text())["state"] == "running"
    first.finish("done", summary={"steps": 3})
    assert json.loads((tmp_path / "a/status.json").read_text())["state"] == "done"
    assert json.loads((tmp_path / "a/summary.json").read_text()) == {
        "schema": 1,
        "identity": "0123456789abcdef",
        "config": {"seed": 0},
        "steps": 3,
    }


def test_a_reader_that_looks_at_a_lock_keeps_nobody_out(tmp_path: Path) -> None:
    run_folder(tmp_path / "a").finish("failed", error="a test")
    reader = open(tmp_path / "a/.lock", "rb")  # noqa: SIM115
    fcntl.flock(reader, fcntl.LOCK_SH)
    leaves = Timer(0.02, reader.close)
    leaves.start()
    os.close(hold(tmp_path / "a"))
    leaves.join()


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EnvironmentFault, match=re.escape(f"cannot write {blocked}")):
        fresh_folder(blocked, "run")


def test_provenance_names_versions_and_hardware_but_no_host_or_user() -> None:
    found = environment.environment()
    assert torch.__version__.startswith(found["torch"])
    assert found["cpu"]
    assert found["cores"] >= 1
    text = json.dumps(found)
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text


# ---------------------------------------------------------------- checkpoints


def state(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"w": torch.full((1000,), float(step))}, "random": torch.get_rng_state()}


def test_the_newest_checkpoint_loads_and_the_previous_is_kept(tmp_path: Path) -> None:
    for step in range(4):
        checkpoint.save(tmp_path, state(step))
    assert checkpoint.load(tmp_path)["step"] == 3
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.prev.pt", "checkpoint.pt", "checkpoint.sha256"]
    (tmp_path / "checkpoint.pt").unlink()
    assert checkpoint.load(tmp_path)["step"] == 2


@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_a_damaged_checkpoint_gives_way_to_the_previous(tmp_path: Path, damage: bytes | None) -> None:
    checkpoint.save(tmp_path, state(1))
    checkpoint.save(tmp_path, state(2))
    newest = tmp_path / "checkpoint.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content) if damage is None else damage)
    assert checkpoint.load(tmp_path)["step"] == 1
    (tmp_path / "checkpoint.prev.pt").write_bytes(b"")
    with pytest.raises(RecordError, match="sha256 differs"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    checkpoint.save(tmp_path, state(1))
    content = pickle.dumps(Touch())
    (tmp_path / "checkpoint.pt").write_bytes(content)
    write_bytes(tmp_path / "checkpoint.sha256", hashlib.sha256(content).hexdigest().encode())
    with pytest.raises(RecordError, match="refused"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "executed").exists()
