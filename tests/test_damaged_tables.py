"""Tables of a run that cannot be read: the run is left out by name, the rest is shown, and nothing else stops."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers_runs import make_run

from bnlab.cli import main
from bnlab.record.run_folder import TABLES

METERS = "step,epoch,meter,figure,layer,depth,axis,value\n" + "".join(
    f"{step},0,gradients,weight_gradient,{depth}.x,{depth},-,{step + depth}.5\n"
    f"{step},0,activations,p50,{depth}.y,{depth},unit 3,{step + depth}.5\n"
    for step in (0, 10, 20)
    for depth in (1, 2)
)
DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda table: table.write_bytes(b""),
    "zeros": lambda table: table.write_bytes(b"\0" * 500),
    "binary": lambda table: table.write_bytes(bytes(range(256)) * 9),
    "columns": lambda table: table.write_text("step,epoch\n1,0\n"),
    "cut": lambda table: table.write_text(table.read_text() + "20,0\n" + table.read_text()[-9:]),
    "word": lambda table: table.write_text(table.read_text().replace(".5\n", "x\n", 1)),
    "digits": lambda table: table.write_text(table.read_text().replace("\n0,", f"\n{'9' * 6000},", 1)),
    "folder": lambda table: table.mkdir(),
    "link": lambda table: table.symlink_to(f"{table}.old"),
    "fifo": lambda table: os.mkfifo(table),
}
IN_PLACE = ("folder", "link", "fifo")  # of the file, which is renamed


def damage_to(table: Path, damage: str) -> None:
    if damage in IN_PLACE:
        table.rename(f"{table}.old")
    DAMAGES[damage](table)


def sweep(folder: Path) -> Path:
    """Four runs of two arms, each with every table."""
    for norm in ("none", "batch"):
        for seed in range(2):
            run = make_run(folder / f"{norm}-{seed}", norm=norm, seed=seed)
            for name, columns in TABLES.items():
                row = ["0" if column != "value" else "0.5" for column in columns]
                table = METERS if name == "meters" else f"{','.join(columns)}\n{','.join(row)}\n"
                (run / f"{name}.csv").write_text(table)
    return folder


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bnlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line in this process, beside a sweep called s; return exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bnlab", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    sweep(tmp_path / "s")
    return run


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_of_meters_is_left_out_by_name(bnlab: Command, tmp_path: Path, damage: str) -> None:
    damage_to(tmp_path / "s" / "batch-1" / "meters.csv", damage)
    code, _, told = bnlab("plot", "layers", "s")
    assert (code, told.splitlines()[1:]) == (0, ["written: layers.svg"])
    assert told.startswith("s/batch-1/meters.csv")
    code, _, told = bnlab("plot", "layers", "s/batch-1", "--out", "a.svg")
    assert (code, told.splitlines()[0]) == (2, "layers: there is nothing to draw")
    assert told.splitlines()[1].startswith("s/batch-1/meters.csv")
    assert not (tmp_path / "a.svg").exists()


def test_a_page_names_the_tables_that_its_pictures_are_without(bnlab: Command, tmp_path: Path) -> None:
    damage_to(tmp_path / "s" / "batch-1" / "meters.csv", "cut")
    line = "s/batch-1/meters.csv, line 14: does not fit the header (8 columns)"
    for out in ("report.html", "report.md"):
        assert bnlab("report", "s", "--out", out) == (0, "", f"{line}\nwritten: {out}\n")
    assert line in (tmp_path / "report.html").read_text().partition("Left out")[2]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("damage", ["binary", "folder"])
def test_a_damaged_table_stops_nothing_that_does_not_read_it(
    bnlab: Command, tmp_path: Path, table: str, damage: str
) -> None:
    damage_to(tmp_path / "s" / "batch-1" / f"{table}.csv", damage)
    assert bnlab("compare", "s")[0] == 0
    assert bnlab("show", "s/batch-1")[0] == 0
    code, out, told = bnlab("export", "csv", "s")
    assert (code, out.partition(",")[0]) == (0, "export/csv: 3 runs")
    assert f"unreadable (s/batch-1/{table}.csv" in told
    code, _, told = bnlab("export", "csv", "s/batch-1", "--out", "x")
    assert (code, told.splitlines()[-1]) == (1, "train them again, or give other runs")


def test_a_run_that_cannot_be_read_is_named_beside_a_picture(bnlab: Command, tmp_path: Path) -> None:
    (tmp_path / "s" / "batch-1" / "summary.json").write_text("{")
    line = "s/batch-1: unreadable (summary.json is not JSON)\n"
    assert bnlab("plot", "curves", "s") == (0, "", f"{line}written: curves.svg\n")
    assert bnlab("report", "s", "--out", "r.md") == (0, "", f"{line}written: r.md\n")


def test_figures_that_are_none_stop_no_comparison_and_no_picture(bnlab: Command, tmp_path: Path) -> None:
    meters = {"gradients": [1], "curvature": 7, "landscape": {"curve": {"step": "x", "loss_range": {}}}}
    for seed, value in enumerate((1e308, -1e308, 1e308)):
        for norm in ("none", "batch"):
            run = make_run(
                tmp_path / "odd" / f"{norm}-{seed}",
                norm=norm,
                seed=seed,
                test_accuracy=[0.1, 0.3, 0.5],
                summary={"meters": meters, "unnormalizable_batches": "many"},
            )
            written = json.loads((run / "summary.json").read_text())
            written["curve"]["test.loss"][1] = value
            (run / "summary.json").write_text(json.dumps(written))
            (run / "meters.csv").write_text(METERS.replace("1.x,1,-,1.5", "1.x,1,-,1e200"))
    for command in (["compare", "odd"], ["plot", "layers", "odd"], ["plot", "curves", "odd"], ["report", "odd"]):
        assert bnlab(*command)[0] == 0


@pytest.mark.parametrize("value", [97.5, -0.1])
def test_an_accuracy_in_percent_is_no_share(bnlab: Command, tmp_path: Path, value: float) -> None:
    make_run(tmp_path / "odd" / "0")
    make_run(tmp_path / "odd" / "1", seed=1, test_accuracy=[0.1, value, 0.5], valid_accuracy=[0.1, 0.2, 0.3])
    code, _, told = bnlab("compare", "odd")
    assert (code, told) == (
        0,
        "odd/1: unreadable (summary.json: curve 'train.accuracy' is not of shares from 0 to 1)\n",
    )
