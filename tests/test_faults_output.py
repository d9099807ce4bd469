"""What comes out: streams that are closed, full, left early, narrow or ASCII; and text that means harm, defused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from helpers_cli import QUICK, Done, bnlab, environment, in_turn
from helpers_runs import make_run

FORMS = ("table", "plain", "csv", "json", "md")
EVIL = "\x1b[2J\x1b]0;owned\x07[red]b[/red]\r\n\u202e|<script>alert(1)</script>"


def harmless(text: str) -> bool:
    """Whether nothing in it moves a cursor, breaks a line or turns the direction of writing."""
    return all(char.isprintable() or char == "\n" for char in text)


@pytest.fixture(scope="module")
def trained(trained_sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of real runs."""
    return Path(shutil.copytree(trained_sweep, tmp_path_factory.mktemp("trained"), dirs_exist_ok=True))


def sweep_of(place: Path) -> str:
    return str(next(place.glob("runs/*-sweep-*")).relative_to(place))


# ---------------------------------------------------------------- streams


def in_shell(line: str, place: Path) -> Done:
    """Give bash a line that begins with `bnlab`, without that word."""
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} -m bnlab {line}"],
        cwd=place,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_streams_that_are_closed_full_or_left_early(trained: Path) -> None:
    run = f"{sweep_of(trained)}/0"
    some = {
        "| head -n 1": [
            "compare",
            f"show {run}",
            "train --info config",
            f"resume {sweep_of(trained)} seed=7 --dry-run",
        ],
        ">&-": ["compare", "train --cfg job", "train --info config", "doctor"],
        "> /dev/full": [f"show {run}", "train --cfg job", "train --info config", f"train {' '.join(QUICK)}"],
    }
    cases = [(command, end) for end, commands in some.items() for command in commands]

    def run_one(case: tuple[str, str]) -> Done:
        return in_shell(f"{case[0]} {case[1]}; exit ${{PIPESTATUS[0]}}", trained)

    with ThreadPoolExecutor(2) as pool:
        for (command, end), done in zip(cases, pool.map(run_one, cases), strict=True):
            allowed = (1,) if "full" in end else (0, 141) if "head" in end else (0,)
            assert done.returncode in allowed, (command, end, done.returncode, done.stderr)
            assert "Traceback" not in done.stderr, (command, end, done.stderr)
            assert "Error" not in done.stderr, (command, end, done.stderr)
            if "full" in end:
                last = done.stderr.splitlines()[-1]
                assert last == "cannot read or write the output: No space left on device"
            assert done.stdout.count("\n") == ("head" in end), (command, end)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["2> /dev/full", "2>&-", "2> >(exec <&-; sleep 1)"], ids=["full", "closed", "left"])
def test_messages_that_nobody_takes_cost_nothing(tmp_path: Path, end: str) -> None:
    done = in_shell(f"train -m seed=0,1 {' '.join(QUICK)} {end}", tmp_path)
    assert (done.returncode, done.stdout.count("  done  "), done.stderr) == (0, 2, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "terminal",
    [
        {"COLUMNS": "20", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        {"COLUMNS": "20", "FORCE_COLOR": "1", "TERM": "dumb"},
        {"COLUMNS": "20", "FORCE_COLOR": "1", "NO_COLOR": "1"},
    ],
    ids=["ascii", "dumb", "NO_COLOR"],
)
def test_narrow_plain_and_ascii_terminals(trained: Path, terminal: dict[str, str]) -> None:
    run = f"{sweep_of(trained)}/0"
    commands = [["compare"], ["show", run], ["list"], ["data", "list"], ["compare", "-f", "md"]]
    if "LC_ALL" in terminal:
        commands += [["doctor"], ["train", *QUICK], ["resume", sweep_of(trained), "seed=7", "--dry-run"]]
    for done in in_turn(commands, trained, **terminal):
        assert done.returncode == 0, (done.args, done.stderr)
        assert done.stdout
        assert "Traceback" not in done.stderr
        assert "\x1b[3" not in done.stdout + done.stderr, "no colour"
        assert (done.stdout + done.stderr).isascii() or "LC_ALL" not in terminal
        assert "\\u2026" not in done.stdout
        if done.args[0] in ("compare", "show", "list", "data") and "-f" not in done.args:
            wide = [line for line in done.stdout.splitlines() if len(line) > 20]
            assert not wide or done.args[0] == "compare", (done.args, wide)


# ---------------------------------------------------------------- text that means harm


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with harm in every text that a record has, and in the name of a folder."""
    place = tmp_path_factory.mktemp("hostile")
    harm = {"name": EVIL, "model.name": EVIL, "optim.name": "=cmd()"}
    for seed in (0, 1):
        make_run(place / "runs" / f"none{seed}", norm="none", seed=seed, config=harm)
        where = {"torch": EVIL, "cpu": EVIL, "gpu": EVIL}
        own = make_run(place / "runs" / f"evil{EVIL[:4]}{seed}", norm=EVIL, seed=seed, config=harm, environment=where)
        rows = f"0,0.0,test,{EVIL[:6]},2.5,100\n"
        (own / "evals.csv").write_text(f"step,epoch,split,metric,value,samples\n{rows}")
    make_run(place / "runs" / "failed", seed=2, state="failed", error=EVIL)
    make_run(place / "runs" / "odd", data=EVIL, seed=3)
    (place / "runs" / f"bad{EVIL[:4]}").mkdir()
    (place / "runs" / f"bad{EVIL[:4]}" / "status.json").write_text(json.dumps({"schema": 1, "state": EVIL}))
    return place


@pytest.mark.slow
def test_no_escape_sequence_reaches_the_output(hostile: Path, trained: Path) -> None:
    evil = f"runs/evil{EVIL[:4]}0"
    commands = [["compare", "-f", form] for form in FORMS]
    commands += [["compare", "--pivot", "norm x seed", "--where", "data=mnist", "-f", form] for form in FORMS]
    commands += [["compare", "--by", "norm"], ["compare", "--where", f"norm={EVIL}"], ["compare", EVIL]]
    commands += [["show", "runs/failed"], ["show", evil], ["show", f"runs/bad{EVIL[:4]}"], ["show", EVIL]]
    commands += [["export", "csv"], ["export", "csv", "--out", EVIL], ["resume", evil]]
    commands += [[command, evil] for command in ("probe", "recalibrate", "shift")]
    real = f"real{EVIL[:4]}"
    shutil.copytree(trained / sweep_of(trained) / "1", hostile / real)
    commands += [["probe", real, "--samples", "256", "-f", form] for form in ("table", "json")]
    commands += [["recalibrate", real, "--samples", "256"], ["shift", real, "--shift", "noise", "--severity", "1"]]
    commands += [["check", f"norm={EVIL}"], ["list", EVIL], ["train", f"name='{EVIL}'"], ["data", "fetch", EVIL]]
    shown = 0
    for done in in_turn(commands, hostile, COLUMNS="100"):
        assert harmless(done.stdout), (done.args, done.stdout)
        assert harmless(done.stderr), (done.args, done.stderr)
        assert "Traceback" not in done.stderr, done.args
        shown += done.returncode == 0
        if "json" in done.args and done.returncode == 0:
            json.loads(done.stdout)
    assert shown >= 19
    for path in hostile.glob("export/csv/*.csv"):
        assert harmless(path.read_text())
    for path in hostile.glob("export/csv/runs.csv"):
        assert set(pd.read_csv(path)["optim.name"].dropna()) == {"'=cmd()", "sgd"}


def test_no_cell_is_a_formula_and_no_cell_is_markup(hostile: Path) -> None:
    table, page = in_turn([["compare", "--by", "optim.name", "-f", form] for form in ("csv", "md")], hostile)
    assert (table.returncode, page.returncode) == (0, 0), table.stderr
    cells = {cell for row in csv.reader(io.StringIO(table.stdout)) for cell in row}
    assert "'=cmd()" in cells
    assert not [cell for cell in cells if cell[:1] in "=@\t" and cell]
    (again,) = in_turn([["compare", "--by", "norm", "-f", "md"]], hostile)
    assert r"\<script>" in again.stdout
    assert "<script>" not in again.stdout.replace(r"\<script>", "")


# ---------------------------------------------------------------- tables that a kill or a resume left


def test_tables_as_a_kill_or_a_resume_leaves_them(tmp_path: Path) -> None:
    """Torn and NUL tails are left out, of rows with one key the last holds, and the order is that of the steps."""
    header = "step,epoch,loss,lr,finite\n"
    tables = {
        "torn": b"1,0,2.5,0.1,1\n2,0,2.25,0.1,1\n3,0,2.",
        "nul": b"1,0,2.5,0.1,1\n2,0,2.25,0.1,1\n\0\0\0\0",
        "again": b"1,0,2.5,0.1,1\n2,0,9.0,0.1,1\n3,0,9.0,0.1,1\n2,0,2.25,0.1,1\n3,0,2.0,0.1,1\n",
        "garbage": b"1,0,2.5,0.1,1\n\xff\xfe garbage\n3,0,2.0,0.1,1\n",
    }
    for seed, (name, rows) in enumerate(tables.items()):
        (make_run(tmp_path / "runs" / name, seed=seed) / "steps.csv").write_bytes(header.encode() + rows)
    done = bnlab("export", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stderr.splitlines()) == [
        "runs/garbage: unreadable (runs/garbage/steps.csv, line 3: does not fit the header (5 columns))",
        "runs/torn: steps.csv: the last line is torn and left out",
    ]
    steps = pd.read_csv(tmp_path / "export" / "csv" / "steps.csv")
    found = {name: rows[["step", "loss"]].values.tolist() for name, rows in steps.groupby("folder")}
    assert found == {
        "runs/torn": [[1, 2.5], [2, 2.25]],
        "runs/nul": [[1, 2.5], [2, 2.25]],
        "runs/again": [[1, 2.5], [2, 2.25], [3, 2.0]],
    }
    compared = bnlab("compare", cwd=tmp_path)
    assert (compared.returncode, "4 seeds" in compared.stdout) == (0, True), "it needs no tables"
