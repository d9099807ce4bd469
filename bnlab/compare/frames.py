"""Runs as pandas tables for notebooks; the terminal's tables do without pandas, which takes 0.4 s to import.

runs = runs_frame([Path("runs")], target=0.98)          # one row a run: configuration and metrics
tables = tables_of(Path("runs/norms/20260101-..."))     # {"steps": ..., "evals": ..., "times": ...}
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bnlab.compare.read import Unreadable, read_bytes, read_runs
from bnlab.errors import RecordError
from bnlab.measure.metrics import TARGETS, Censored, metrics

# What tells the rows of each table apart: after a resume the later row of a step holds.
KEYS = {"steps": ["step"], "evals": ["step", "split", "metric"], "times": ["step"]}
LARGEST_TABLE = 2**30  # bytes


def runs_frame(paths: Iterable[Path], target: float | None = None) -> pd.DataFrame:
    """Return one row a run: folder, state, error, its configuration (`optim.lr`) and every metric of finished runs.

    A time to a target that was not reached is NaN, with the last time in a column of its own (`..._censored`). Folders
    that could not be read stand in `frame.attrs["skipped"]`.
    """
    runs, skipped = read_runs(paths)
    rows: list[dict[str, object]] = []
    for run in runs:
        row: dict[str, object] = {"folder": str(run.folder), "state": run.state, "error": run.error, **run.config}
        goal = TARGETS.get(str(run.config.get("data.name"))) if target is None else target
        for metric in metrics.values() if run.state == "done" else ():
            value = metric.derive(run.summary or {}, goal)
            if isinstance(value, Censored):
                row[f"{metric.name}_censored"] = value.at
            else:
                row[metric.name] = value
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame.attrs["skipped"] = [(str(folder), reason) for folder, reason in skipped]
    return frame


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the tables of one run by name; those that it does not have are absent.

    A torn last line, as a kill leaves it, is left out and named in `frame.attrs["notes"]`; of rows with the same key
    the last holds.

    Errors: RecordError naming file and line where a row does not fit its header.
    """
    tables = {name: folder / f"{name}.csv" for name in KEYS}
    return {name: _table(path, KEYS[name]) for name, path in tables.items() if path.is_file()}


def _table(path: Path, keys: list[str]) -> pd.DataFrame:
    try:
        content = read_bytes(str(path), LARGEST_TABLE)
    except (FileNotFoundError, Unreadable) as error:
        raise RecordError(f"{path}: {error}") from error
    notes: list[str] = []
    whole, newline, torn = content.rstrip(b"\0").rpartition(b"\n")
    if torn or not newline:
        notes.append(f"{path.name}: the last line is torn and left out")
    lines = whole.split(b"\n")
    columns = lines[0].count(b",") + 1
    for number, line in enumerate(lines, 1):
        # Nothing that a run records holds a comma, a quote or an empty cell; pandas would fill a cut row with NaN.
        if line.count(b",") + 1 != columns or b"\0" in line or not all(line.split(b",")):
            raise RecordError(f"{path}, line {number}: does not fit the header ({columns} columns)")
    frame = pd.read_csv(io.BytesIO(whole))
    missing = [key for key in keys if key not in frame.columns]
    if missing:
        raise RecordError(f"{path}, line 1: no column {', '.join(missing)}")
    frame = frame.drop_duplicates(keys, keep="last").sort_values("step", kind="stable", ignore_index=True)
    frame.attrs["notes"] = notes
    return frame
