"""MLflow: runs in a local SQLite store, which a later export adds to."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bnlab.compare.arms import OVER, text_of
from bnlab.compare.frames import Tables, curves_of
from bnlab.errors import ConfigError, EnvironmentFault, count_of
from bnlab.export.about import figures_of, labels_of, started_of
from bnlab.export.place import fresh_place
from bnlab.record.read import Run
from bnlab.report.console import clean, messages

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities import Run as Tracked

EXPERIMENT = "bnlab"
STATUS = {
    "done": "FINISHED", "diverged": "FAILED", "refused": "FAILED", "failed": "FAILED", "interrupted": "KILLED",
    "killed": "KILLED",
}  # fmt: skip
MOST_PARAMS, MOST_METRICS = 100, 1000  # that MLflow takes at once
LONGEST_KEY = 250  # characters that MLflow takes
LONGEST_TEXT = 5000  # characters; MLflow takes 6000


def add_runs(place: Path, runs: Sequence[Run], tables: Sequence[Tables]) -> str:
    """Add to `place`/mlflow.db the runs that are not in it, and return how many these were.

    A run is known by its identity: of equal runs one is added. One that was exported before its end is replaced after
    it. A run that is still running is left out, and what an interrupted export left half is done again.

    Errors: ConfigError when `place` is no folder, EnvironmentFault when the store refuses.
    """
    if os.path.lexists(place) and not place.is_dir():
        raise ConfigError(f"{place} is not a folder\nchoose another place with --out")
    latest: dict[str, int] = {}
    for i in sorted(range(len(runs)), key=lambda i: (runs[i].state in OVER, runs[i].order)):
        if runs[i].state in STATUS:
            latest[_identity(runs[i])] = i
        else:
            messages().say(f"{runs[i].folder}: is {runs[i].state}, left out until it is over")
    chosen = sorted(latest.values())
    with contextlib.nullcontext(place) if place.is_dir() else fresh_place(place) as folder:
        added = _add(folder, place, [runs[i] for i in chosen], [tables[i] for i in chosen])
    return f"{count_of(added, 'run')} added, {len(chosen) - added} were there"


def _add(folder: Path, place: Path, runs: Sequence[Run], tables: Sequence[Tables]) -> int:
    """Add what is missing to the store in `folder`, which is going to lie at `place`; return how many runs."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy import URL
    from sqlalchemy.exc import SQLAlchemyError

    logging.disable(logging.WARNING)  # of MLflow and Alembic, which set levels of their own
    # of `sqlite:` alone MLflow makes the folder, by its name as the URL quotes it: another one
    store = URL.create("sqlite+pysqlite", database=str(folder.resolve() / "mlflow.db")).render_as_string()
    added = 0
    try:
        client = MlflowClient(tracking_uri=store, registry_uri=store)
        existing = client.get_experiment_by_name(EXPERIMENT)
        artifacts = (place.resolve() / "artifacts").as_uri()
        experiment = existing.experiment_id if existing else client.create_experiment(EXPERIMENT, artifacts)
        there = _there(client, experiment)
        for run, of_run, label, figures in zip(runs, tables, labels_of(runs), figures_of(runs), strict=True):
            old = there.get(_identity(run))
            if old is None or _has_gone_on(old, run):
                _add_run(client, experiment, run, label, _history(run, of_run, figures))
                added += 1
                if old is not None:
                    client.delete_run(old.info.run_id)
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise EnvironmentFault(f"{place / 'mlflow.db'}: {reason}\nchoose another place with --out") from error
    finally:
        logging.disable(logging.NOTSET)
    return added


def _there(client: MlflowClient, experiment: str) -> dict[str, Tracked]:
    """Return the exported runs by identity; delete those that an interrupted export left half."""
    there: dict[str, Tracked] = {}
    page = client.search_runs([experiment])
    while True:
        for tracked in page:
            if tracked.info.status == "RUNNING":
                client.delete_run(tracked.info.run_id)
            elif (identity := tracked.data.tags.get("bnlab.identity")) is not None:
                there[identity] = tracked
        if not page.token:
            return there
        page = client.search_runs([experiment], page_token=page.token)


def _has_gone_on(old: Tracked, run: Run) -> bool:
    """Whether what was exported was not over, and the run is another by now: resumed, or started anew."""
    before, now = old.data.tags, _tags(run)
    return before.get("bnlab.state") not in OVER and any(
        before.get(k) != now[k] for k in ("bnlab.state", "bnlab.order")
    )


def _add_run(client: MlflowClient, experiment: str, run: Run, label: str, history: Sequence[Metric]) -> None:
    from mlflow.entities import Param

    start = 1000 * started_of(run)
    new = client.create_run(experiment, start_time=int(start), run_name=label[:LONGEST_TEXT], tags=_tags(run))
    number = new.info.run_id
    # MLflow refuses a run that gives one key two values: of names that come to one key, the last is kept
    by_key = {_key(key): clean(text_of(value))[:LONGEST_TEXT] for key, value in run.config.items()}
    params = [Param(key, value) for key, value in by_key.items()]
    for first in range(0, len(params), MOST_PARAMS):
        client.log_batch(number, params=params[first : first + MOST_PARAMS])
    for first in range(0, len(history), MOST_METRICS):
        client.log_batch(number, metrics=history[first : first + MOST_METRICS])
    end = max((metric.timestamp for metric in history), default=int(start))
    client.set_terminated(number, STATUS[run.state], end_time=end)


def _history(run: Run, tables: Tables, figures: Mapping[str, float]) -> list[Metric]:
    """Return every curve by step, then the figures of the finished run at its last step."""
    from mlflow.entities import Metric

    start, last = 1000 * started_of(run), 0
    history: list[Metric] = []
    for name, curve in curves_of(tables).items():
        points = zip(curve["step"].tolist(), curve["value"].tolist(), curve["seconds"].tolist(), strict=True)
        history += [Metric(_key(name), value, int(start + 1000 * seconds), step) for step, value, seconds in points]
        last = max(last, int(curve["step"].max()))
    end = max((metric.timestamp for metric in history), default=int(start))
    return history + [Metric(name, value, end, last) for name, value in figures.items()]


def _tags(run: Run) -> dict[str, str]:
    about = {"identity": _identity(run), "state": run.state, "folder": run.folder, "order": run.order}
    if run.error is not None:
        about["error"] = run.error
    return {f"bnlab.{name}": clean(value)[:LONGEST_TEXT] for name, value in about.items()}


def _identity(run: Run) -> str:
    kind = "bench " if run.is_bench else ""  # older ones have the identity of the training they did not do
    return clean(f"{kind}{run.identity or run.folder.resolve()}")[:LONGEST_TEXT]


def _key(name: str) -> str:
    """Return a name as MLflow allows it: of some characters, and a path that leads nowhere else."""
    allowed = re.sub(r"[^A-Za-z0-9_\-. /:]", "_", name)[:LONGEST_KEY]
    parts = [part.replace(".", "_") if part in (".", "..") else part for part in allowed.split("/") if part]
    return re.sub(r"^\.\.", "__", "/".join(parts)) or "_"
