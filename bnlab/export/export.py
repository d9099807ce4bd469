"""`bnlab export`: read runs without trust, and hand them to the writer of a format.

Every writer gets the runs with their tables and a folder to fill. The folder is filled beside its place and renamed
into it, so that a failure leaves nothing; nothing is written over but an earlier export, if that is asked for. MLflow
alone adds to what is there.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bnlab.compare.arms import where_of
from bnlab.compare.frames import KEYS, Tables, tables_of
from bnlab.errors import ConfigError, EnvironmentFault, RecordError
from bnlab.export.events import FILE, write_events
from bnlab.export.place import fresh_place, must_be_free
from bnlab.export.table_files import table_counts, write_csv, write_parquet
from bnlab.export.tracking import add_runs
from bnlab.record.read import Run, read_runs, started
from bnlab.report.console import messages, results

# The modules that a format needs beside bnlab's own libraries.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "csv": (),
    "parquet": ("pyarrow",),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}


OWN_FILES = {f"{name}.{form}" for name in ("runs", *KEYS) for form in ("csv", "parquet")} | {FILE}


def export(form: str, paths: Iterable[Path], place: Path | None, where: Sequence[str], force: bool = False) -> bool:
    """Write the runs under `paths` that meet `where` to `place`, by default `export/FORMAT`; print what was written.

    `force`: in place of an earlier export, once the new one is whole.

    Returns whether every run folder could be read. Errors: ConfigError for a place that exists, a path or condition
    that is wrong; EnvironmentFault for a missing library or a place that cannot be written; RecordError without runs.
    """
    place = place or Path("export") / form
    must_have(form, f"bnlab export {form}")
    if form != "mlflow":
        must_be_free(place, OWN_FILES if force else None)
    elif force:
        raise ConfigError("--force: mlflow adds to its store, and replaces nothing\nleave it out")
    runs, tables, complete = _read(list(paths), where)
    out, err = results(), messages()
    if form == "mlflow":
        out.say(f"{place}: {add_runs(place, runs, tables)}")
        err.say(f"look at it with `mlflow ui --backend-store-uri sqlite:///{place}/mlflow.db`")
        return complete
    with fresh_place(place, force) as folder:
        if form == "tensorboard":
            write_events(folder, runs, tables)
        else:
            (write_csv if form == "csv" else write_parquet)(folder, runs, tables)
    out.say(f"{place}: {table_counts(runs, tables)}")
    if form == "tensorboard":
        err.say(f"look at it with `tensorboard --logdir {place}`")
    return complete


def _read(paths: Sequence[Path], where: Sequence[str]) -> tuple[list[Run], list[Tables], bool]:
    """Return the runs, their tables, and whether nothing was left out; what is left out is named on stderr."""
    found, skipped = read_runs(paths)
    if found := started(found):
        found = where_of(where, found)
    err = messages()
    runs: list[Run] = []
    tables: list[Tables] = []
    for run in found:
        try:
            of_run = tables_of(run.folder)
        except RecordError as error:
            skipped.append((run.folder, str(error)))
            continue
        for note in (note for table in of_run.values() for note in table.attrs["notes"]):
            err.say(f"{run.folder}: {note}")
        runs.append(run)
        tables.append(of_run)
    for folder, reason in skipped:
        err.say(f"{folder}: unreadable ({reason})")
    if not runs:
        way = "train them again, or give other runs" if skipped else "give the folder that has them"
        raise RecordError(f"no runs to export in {', '.join(map(str, paths))}\n{way}")
    return runs, tables, not skipped


def must_have(form: str, asked: str) -> None:
    """Import what a format needs, which was `asked` for. Errors: EnvironmentFault naming what to install."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # or MLflow tells its makers that it was imported
    for name in NEEDS[form]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise EnvironmentFault(
                f"{asked}: {name} cannot be imported ({error})\npip install 'bnlab[export]'"
            ) from error
