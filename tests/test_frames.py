"""Runs as pandas tables, and the tables of one run read strictly."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers_runs import make_run

from bnlab.compare.frames import runs_frame, tables_of
from bnlab.errors import RecordError


def test_one_row_a_run(tmp_path: Path) -> None:
    make_run(tmp_path / "a", norm="ghost", seed=0, test_accuracy=[0.1, 0.99])
    make_run(tmp_path / "b", norm="none", seed=1, test_accuracy=[0.1, 0.9])
    make_run(tmp_path / "c", norm="none", seed=2, state="failed", error="boom")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "status.json").write_text("[]")
    frame = runs_frame([tmp_path])
    assert frame["state"].tolist() == ["done", "done", "failed"]
    assert frame["norm.name"].tolist() == ["ghost", "none", "none"]
    assert frame["test_accuracy"].tolist()[:2] == [0.99, 0.9]
    assert frame["steps_to_target"].isna().tolist() == [False, True, True]
    assert frame["steps_to_target_censored"].tolist()[1] == 100.0
    assert frame.attrs["skipped"] == [(str(tmp_path / "d"), "status.json is not a JSON object")]


def test_a_run_that_diverged_has_the_times_that_it_did_not_reach(tmp_path: Path) -> None:
    make_run(tmp_path / "a", test_accuracy=[0.1, 0.9], state="diverged")
    (row,) = runs_frame([tmp_path]).to_dict("records")
    assert (row["steps_to_target_censored"], row["learned"]) == (100.0, 0.0)
    assert all(math.isnan(row[name]) for name in ("steps_to_target", "test_accuracy"))


def test_tables_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text(
        "step,epoch,loss,lr,finite\n1,0,2.3,0.1,1\n2,0,2.1,0.1,1\n1,0,2.25,0.1,1\n3,0,2."
    )
    (tmp_path / "evals.csv").write_bytes(b"step,epoch,split,metric,value,samples\n0,0.0,test,loss,2.3,100\n\0\0\0")
    tables = tables_of(tmp_path)
    assert sorted(tables) == ["evals", "steps"]
    assert tables["steps"]["loss"].tolist() == [2.25, 2.1], "the later row of a step holds, the torn one does not count"
    assert tables["steps"].attrs["notes"] == ["steps.csv: the last line is torn and left out"]
    assert tables["evals"].attrs["notes"] == []
    assert tables["evals"]["value"].tolist() == [2.3]


@pytest.mark.parametrize("rows", ["1,2\n", "1,0,2.3,0.1,1,9\n", "1,0,,0.1,1\n", "1,0,\0,0.1,1\n"])
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, rows: str) -> None:
    (tmp_path / "steps.csv").write_text("step,epoch,loss,lr,finite\n1,0,2.3,0.1,1\n" + rows + "3,0,2.3,0.1,1\n")
    with pytest.raises(RecordError, match=r"steps.csv, line 3: does not fit the header"):
        tables_of(tmp_path)


def test_a_table_with_another_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RecordError, match=r"line 1: no column step"):
        tables_of(tmp_path)
