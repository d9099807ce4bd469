"""Runs as pandas tables for notebooks; the terminal's tables do without pandas, which takes 0.4 s to import.

runs = runs_frame([Path("runs")], target=0.98)          # one row a run: configuration and metrics
tables = tables_of(Path("runs/norms/20260101-..."))     # {"steps": ..., "evals": ..., "layers": ..., "times": ...}

Figures are as they were recorded: an accuracy is a fraction, not the percentage that the terminal shows.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bnlab.compare.arms import arms_of, text_of
from bnlab.data.dataset import target_of
from bnlab.errors import RecordError, count_of
from bnlab.metrics import Censored, metrics
from bnlab.record.read import Run, read_runs, started
from bnlab.record.read_files import Unreadable, read_bytes
from bnlab.record.run_folder import TABLES

# What tells the rows of each table apart: after a resume the later row of a step holds.
KEYS = {
    "steps": ["step"],
    "evals": ["step", "split", "metric"],
    "layers": ["step", "layer", "reference", "metric"],
    "times": ["step"],
    "meters": ["step", "meter", "figure", "layer", "axis"],
}
TEXTS = ("split", "metric", "layer", "reference", "meter", "figure", "axis")  # a layer called `1` is text all the same
LARGEST_TABLE = 2**30  # bytes
# Before pandas 3.1 numbers are off by a last digit unless asked; since then the word is deprecated.
EXACT: dict[str, Any] = (
    {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
)

Tables = Mapping[str, pd.DataFrame]


def runs_frame(paths: Iterable[Path], target: float | None = None) -> pd.DataFrame:
    """Return one row a run: folder, state, error, its configuration (`optim.lr`) and every metric of finished runs.

    A time to a target that was not reached, by a run that is done or diverged, is NaN, with the last time in a column
    of its own (`..._censored`). Folders that could not be read stand in `frame.attrs["skipped"]`.
    """
    runs, skipped = read_runs(paths)
    frame = frame_of(started(runs), target)
    frame.attrs["skipped"] = [(str(folder), reason) for folder, reason in skipped]
    return frame


def frame_of(runs: Iterable[Run], target: float | None = None) -> pd.DataFrame:
    """Return `runs_frame` of runs that are read already."""
    rows: list[dict[str, object]] = []
    measured: list[dict[str, float | None]] = []
    for run in runs:
        about = {"folder": run.folder, "state": run.state, "error": run.error, **run.config}
        rows.append({key: _encodable(value) for key, value in about.items()})
        goal = target_of(run.config.get("data.name")) if target is None else target
        figures: dict[str, float | None] = {}
        for metric in metrics.values():
            if run.state != "done" and not (metric.of_diverged and run.state == "diverged"):
                continue
            value = metric.derive(run.summary or {}, goal)
            if isinstance(value, Censored):
                figures[f"{metric.name}_censored"] = value.at
            else:
                figures[metric.name] = value
        measured.append(figures)
    columns = [
        name for m in metrics.values() for name in (m.name, f"{m.name}_censored")[: 1 if m.kind == "mean" else 2]
    ]
    figured = pd.DataFrame(measured, columns=columns, dtype=float)
    return pd.DataFrame(rows).drop(columns=columns, errors="ignore").join(figured)


def tables_of(folder: Path | str, names: Iterable[str] = KEYS) -> dict[str, pd.DataFrame]:
    """Return the tables of one run by name, all or those asked for; those that it does not have are absent.

    A torn last line, as a kill leaves it, is left out and named in `frame.attrs["notes"]`; of rows with the same key
    the last holds.

    Errors: RecordError naming file and line where a row does not fit its header, or the column that is no number.
    """
    tables = {name: Path(folder) / f"{name}.csv" for name in names}
    return {name: _table(path, name) for name, path in tables.items() if os.path.lexists(path)}


def _table(path: Path, name: str) -> pd.DataFrame:
    try:
        content = read_bytes(path, LARGEST_TABLE)
    except (FileNotFoundError, Unreadable) as error:
        raise RecordError(f"{path}: {error}") from error
    notes: list[str] = []
    whole, newline, torn = content.rstrip(b"\0").rpartition(b"\n")
    if torn or not newline:
        notes.append(f"{path.name}: the last line is torn and left out")
    if not whole:
        raise RecordError(f"{path}: is empty")
    lines = whole.split(b"\n")
    columns = lines[0].count(b",") + 1
    for number, line in enumerate(lines, 1):
        # Nothing that a run records holds a comma, a quote or an empty cell; pandas would fill a cut row with NaN.
        if line.count(b",") + 1 != columns or b"\0" in line or b'"' in line or not all(line.split(b",")):
            raise RecordError(f"{path}, line {number}: does not fit the header ({count_of(columns, 'column')})")
    # Only `nan` is a missing number; a layer may be called `null`.
    try:
        frame: pd.DataFrame = pd.read_csv(
            io.BytesIO(whole),
            dtype=dict.fromkeys(TEXTS, str),
            keep_default_na=False,
            **EXACT,
            na_values={column: ["nan"] for column in TABLES[name] if column not in TEXTS},
        )
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: is not UTF-8") from error
    missing = [column for column in TABLES[name] if column not in frame.columns]
    if missing:
        raise RecordError(f"{path}, line 1: no column {', '.join(missing)}")
    for column in TABLES[name] if len(frame) else ():
        kinds = "i" if column == "step" else "uif"
        if column not in TEXTS and frame[column].dtype.kind not in kinds:
            raise RecordError(f"{path}: column {column} holds something else than numbers")
    frame = frame.drop_duplicates(KEYS[name], keep="last").sort_values("step", kind="stable", ignore_index=True)
    frame.attrs["notes"] = notes
    return frame


def all_frames(runs: Sequence[Run], tables: Sequence[Tables]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield by name `runs`, one row a run, then each table over all runs; `tables[i]` are those of `runs[i]`.

    That of meters only where a run has one.
    The first columns of a table tell the runs apart: folder, the keys that differ between arms, seed.
    """
    yield "runs", frame_of(runs)
    for name in KEYS:
        if name != "meters" or any(name in of for of in tables):
            yield name, _long_frame(name, runs, tables)


def _long_frame(name: str, runs: Sequence[Run], tables: Sequence[Tables]) -> pd.DataFrame:
    keys = dict.fromkeys([*arms_of(runs)[1], "seed"])
    about = [{"folder": _encodable(run.folder), **{k: _encodable(run.config.get(k)) for k in keys}} for run in runs]
    present = [(i, of[name]) for i, of in enumerate(tables) if name in of and len(of[name])]
    if not present:
        return pd.DataFrame(columns=list(dict.fromkeys([*about[0], *TABLES[name]])))
    own = pd.concat([table for _, table in present], ignore_index=True)
    lead = pd.DataFrame(about).iloc[[i for i, table in present for _ in range(len(table))]].reset_index(drop=True)
    return pd.concat([lead.drop(columns=own.columns, errors="ignore"), own], axis=1)


def one_type_a_column(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` for formats whose columns have one type: a column of texts and numbers becomes text."""
    settled = frame.copy(deep=False)
    for column in (column for column in frame if frame[column].dtype.kind == "O"):
        kind = pd.api.types.infer_dtype(frame[column], skipna=True)
        if kind == "boolean":
            settled[column] = frame[column].astype("boolean")
        elif kind not in ("string", "empty"):
            settled[column] = frame[column].map(text_of, na_action="ignore")
    return settled


def curves_of(tables: Tables) -> dict[str, pd.DataFrame]:
    """Return `step/loss` and `step/lr`, of each step, and every evaluated metric, such as `test/accuracy`.

    Columns: step, value, seconds. Seconds count steps and the preparation of their batches, no evaluation.
    """
    curves: dict[str, pd.DataFrame] = {}
    if "steps" in tables:
        for figure in ("loss", "lr"):
            curves[f"step/{figure}"] = tables["steps"][["step", figure]].rename(columns={figure: "value"})
    if "evals" in tables:
        for (split, metric), rows in tables["evals"].groupby(["split", "metric"], sort=False):
            curves[f"{split}/{metric}"] = rows[["step", "value"]]
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    times = tables.get("times")
    if times is None or not len(times):
        return {name: curve.assign(seconds=0.0) for name, curve in curves.items()}
    elapsed = (times["data_ms"] + times["step_ms"]).fillna(0.0).cumsum() / 1e3
    clock = pd.DataFrame({"step": times["step"], "seconds": elapsed})
    return {name: pd.merge_asof(curve, clock, on="step").fillna({"seconds": 0.0}) for name, curve in curves.items()}


def _encodable(value: object) -> object:
    """Return a value that any file can hold: text with an escape for what is not UTF-8, and numbers of 64 bits."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return str(value)  # some versions of pandas raise at it
    if not isinstance(value, (str, Path)):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()
