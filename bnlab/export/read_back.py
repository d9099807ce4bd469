"""Runs out of the stores of trackers: MLflow's, and TensorBoard's event files; nothing is written there."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bnlab.compare.imported import Record, read_csv
from bnlab.errors import ConfigError
from bnlab.export.export import must_have

HPARAMS = "_hparams_/session_start_info"  # where TensorBoard's hyperparameters stand


def read_records(source: str) -> list[Record]:
    """Return the runs in a CSV, `mlflow:URI` or `tensorboard:FOLDER`. Errors: ConfigError; EnvironmentFault."""
    form, colon, place = source.partition(":")
    if colon and form == "mlflow":
        return _mlflow(place)
    if colon and form == "tensorboard":
        return _tensorboard(Path(place))
    return read_csv(Path(source))


def _mlflow(place: str) -> list[Record]:
    """Return all runs of a store with their experiment, status, parameters, and the last value of each metric."""
    must_have("mlflow", "--from mlflow")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # or a server that is not there takes minutes
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.path.isfile(os.path.join(place, "mlflow.db")):
        place = os.path.join(place, "mlflow.db")
    if os.path.isfile(place):
        place = f"sqlite:///{os.path.abspath(place)}"
    if "://" not in place and not os.path.isdir(place):
        raise ConfigError(
            f"--from mlflow:{place}: does not exist\ngive a file mlflow.db, its folder, or http://HOST:PORT"
        )
    if place.startswith("sqlite:///"):
        _must_be_store(place.removeprefix("sqlite:///"))
    records: list[Record] = []
    try:
        client = MlflowClient(tracking_uri=place, registry_uri=place)
        names = {each.experiment_id: each.name for each in _pages(client.search_experiments)}
        for run in _pages(client.search_runs, list(names)):
            about = {"experiment": names[run.info.experiment_id], "status": run.info.status}
            records.append(Record(f"run {run.info.run_id}", {**about, **run.data.params, **run.data.metrics}))
    except (MlflowException, SQLAlchemyError) as error:
        raise ConfigError(f"--from mlflow:{place}: {str(error).strip().partition(chr(10))[0]}") from error
    return records


def _pages(search: Any, *arguments: Any) -> Iterator[Any]:
    page = search(*arguments)
    yield from page
    while page.token:
        page = search(*arguments, page_token=page.token)
        yield from page


def _must_be_store(file: str) -> None:
    """Raise ConfigError unless a file is MLflow's: it would write its tables into any other database."""
    try:
        store = sqlite3.connect(f"file:{quote(os.path.abspath(file))}?mode=ro", uri=True)
        try:
            found = store.execute("SELECT name FROM sqlite_master WHERE name = 'experiments'").fetchall()
        finally:
            store.close()
    except sqlite3.Error as error:
        raise ConfigError(f"--from mlflow:{file}: is no store of MLflow ({error})") from error
    if not found:
        raise ConfigError(f"--from mlflow:{file}: is no store of MLflow")


def _tensorboard(folder: Path) -> list[Record]:
    """Return each folder of event files as a run: its name, its hyperparameters, and the last value of each scalar."""
    must_have("tensorboard", "--from tensorboard")
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.util.tensor_util import make_ndarray

    if not folder.is_dir():
        raise ConfigError(f"--from tensorboard:{folder}: is no folder")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    records: list[Record] = []
    for place, _, files in sorted(os.walk(folder)):
        if not any("tfevents" in file for file in files):
            continue
        events = EventAccumulator(place, size_guidance={"scalars": 1, "tensors": 1}).Reload()
        tags = events.Tags()
        values: dict[str, Any] = {"run": os.path.relpath(place, folder)}
        with contextlib.suppress(KeyError, DecodeError):  # it has none
            content = HParamsPluginData.FromString(events.PluginTagToContent("hparams")[HPARAMS])
            for name, value in content.session_start_info.hparams.items():
                kind = value.WhichOneof("kind")
                values[name] = None if kind is None else getattr(value, kind)
        values |= {tag: float(events.Scalars(tag)[-1].value) for tag in tags["scalars"]}
        arrays = {tag: make_ndarray(events.Tensors(tag)[-1].tensor_proto) for tag in tags["tensors"]}
        values |= {tag: float(array) for tag, array in arrays.items() if array.ndim == 0 and array.dtype.kind in "fiu"}
        records.append(Record(f"run {values['run']}", values))
    return records
