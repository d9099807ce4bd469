"""CSV and Parquet: runs, steps, evals, layers and times, each one table over all runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from bnlab.compare.frames import KEYS, Tables, all_frames, one_type_a_column
from bnlab.errors import count_of
from bnlab.record.read import Run
from bnlab.report.rows import inert


def write_csv(folder: Path, runs: Sequence[Run], tables: Sequence[Tables]) -> None:
    """Write `runs.csv` and one file a table; floats have all their digits, null and what a run has not are empty.

    A spreadsheet runs no cell as a formula: such a text starts with an apostrophe. Control characters are escapes.
    """
    # Few texts stand in many rows; True and 1 are equal and not the same text.
    cell = lru_cache(maxsize=None, typed=True)(inert)
    for name, frame in all_frames(runs, tables):
        shown = frame.copy(deep=False)
        for column in frame.columns.difference(frame.select_dtypes("number").columns):
            shown[column] = frame[column].astype(object).map(cell)
        shown.columns = [cell(column) for column in frame.columns]
        shown.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


def write_parquet(folder: Path, runs: Sequence[Run], tables: Sequence[Tables]) -> None:
    """Write `runs.parquet` and one file a table; texts are as they were recorded."""
    for name, frame in all_frames(runs, tables):
        one_type_a_column(frame).to_parquet(folder / f"{name}.parquet", index=False)


def table_counts(runs: Sequence[Run], tables: Sequence[Tables]) -> str:
    """Return how much there is: `4 runs, 120 steps, ...`, in rows."""
    rows = {name: sum(len(of[name]) for of in tables if name in of) for name in KEYS}
    return ", ".join(count_of(count, name.removesuffix("s")) for name, count in {"runs": len(runs), **rows}.items())
