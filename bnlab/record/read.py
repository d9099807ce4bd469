"""Run folders read without trust: whatever lies there, reading ends, and what cannot be read is named with the reason.

Only regular files of a bounded size are opened, without following links and without waiting (a FIFO would block).
Links to folders are not followed either, so a loop of links ends at once; a path given by the user may be a link.
"""

from __future__ import annotations

import array
import errno
import gc
import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from bnlab.errors import ConfigError, RecordError, count_of
from bnlab.metric import LARGEST, number
from bnlab.record.evaluations import SETTINGS, Evaluations, read_evaluations, summary_of
from bnlab.record.latest import no_runs, runs_folder
from bnlab.record.plain_files import open_plain
from bnlab.record.read_files import Unreadable, read_bytes

State = Literal["done", "diverged", "refused", "failed", "interrupted", "killed", "running", "queued", "not needed"]
UNSTARTED = ("queued", "not needed")  # jobs without a run; the latter since their sweep was decided without them

SCHEMA = 1
DEEPEST_CONFIG = 8  # nested levels
MOST_KEYS = 500  # of a configuration; bnlab's own has about 50
SHARES = (".accuracy", ".flip_rate")  # how the names of curves end whose figures are from 0 to 1
_IDENTITY = re.compile(rb'"identity": *"(\w*)"')
_NAME_A_RUN = "give a run such as latest, latest/0 or runs/…/0; `bnlab runs` lists them"
LEAST_SHARED = 0.1  # of a run's time with another, from which its clock says nothing of it alone
DEEPEST_FOLDER = 3  # below a path: a folder of sweeps, a sweep, a run


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run left behind."""

    folder: Path
    state: State
    identity: str
    config: dict[str, Any]  # flat: "optim.lr" -> 0.1
    seed: int
    order: int = 0  # of the start; later runs have larger ones
    error: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] | None = None  # where it is done or diverged; its curves are arrays, nan where missing
    evaluations: Evaluations = field(default_factory=dict)  # of its checkpoint, under other settings of evaluation
    is_beside: bool = False  # it ran while another of those that were read did

    @property
    def is_bench(self) -> bool:
        """Whether its steps were timed by `bnlab bench`, and nothing was trained."""
        return self.summary is not None and isinstance(self.summary.get("bench"), dict)

    @property
    def is_evaluated(self) -> bool:
        """Whether it is another run evaluated again, of which the last evaluation alone is known."""
        return self.summary is not None and self.summary.get("evaluated") is True


def evaluated(run: Run, *, alike: bool = False) -> list[Run]:
    """Return what a run would have been with the settings under which its checkpoint was evaluated again.

    `alike`: also where nothing but more was measured, of which the run itself has the figures, in `measured`.
    """
    return [
        replace(
            run,
            identity=identity,
            config=run.config | _config(run, entry),
            summary=summary_of(run.summary or {}, entry),
        )
        for identity, entry in run.evaluations.items()
        if alike or not _is_same(run, entry)
    ]


def _is_same(run: Run, entry: dict[str, Any]) -> bool:
    return all(
        run.config.get(key, SETTINGS.get(key)) == value for key, value in entry["config"].items() if key != "measure"
    )


def _config(run: Run, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an evaluation; what meters read is of the training, whatever was evaluated after it."""
    has_meters = run.config.get("measure", "cheap") not in ("cheap", "full")
    return {key: value for key, value in entry["config"].items() if key != "measure" or not has_meters}


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep the garbage collector from walking all runs again and again: a fifth of the time of a comparison."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_collector()
def read_runs(
    paths: Iterable[Path], identities: Collection[str] | None = None
) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Read every run folder at or below `paths`; return the runs and the folders left out with the reason.

    With `identities` those runs alone that have one of them. Errors: ConfigError when a path does not exist or is no
    folder.
    """
    runs: list[Run] = []
    skipped: list[tuple[Path, str]] = []
    seen: set[str] = set()
    for path in paths:
        if not os.path.isdir(path):
            if path == runs_folder() and not os.path.lexists(path):
                raise no_runs()
            reason = "is not a folder" if os.path.lexists(path) else "does not exist"
            raise ConfigError(f"{path}: {reason}\ngive a run, a sweep or a folder of runs; `bnlab runs` lists them")
        start, real = str(path), os.path.realpath(path)
        for folder, status in _found(start, DEEPEST_FOLDER, skipped):
            if (place := real + folder[len(start) :]) in seen:
                continue  # no link was followed on the way, so equal folders have equal places
            seen.add(place)
            if identities is not None and not ((own := _IDENTITY.search(status)) and own[1].decode() in identities):
                continue
            try:
                runs.append(_run(folder, status))
            except Unreadable as error:
                skipped.append((Path(folder), str(error)))
    return _with_company(runs), list(dict.fromkeys(skipped))


def _with_company(runs: list[Run]) -> list[Run]:
    """Return the runs, marked where another took place in LEAST_SHARED of their time: jobs that ran at once."""
    spans = sorted(
        (run.order, run.order + int(1e9 * seconds), place)
        for place, run in enumerate(runs)
        if run.summary is not None and 0 < (seconds := number(run.summary, "wall_seconds") or 0) <= LARGEST
    )
    beside: set[int] = set()
    longest = spans[0] if spans else (0, 0, 0)  # that which ends last
    for span in spans[1:]:
        shared = min(longest[1], span[1]) - span[0]
        beside |= {place for start, end, place in (longest, span) if shared > LEAST_SHARED * (end - start)}
        longest = max(longest, span, key=lambda each: each[1])
    return [replace(run, is_beside=True) if place in beside else run for place, run in enumerate(runs)]


def started(runs: Iterable[Run]) -> list[Run]:
    """Return the runs without the jobs that were not started, of which there is nothing to compare."""
    return [run for run in runs if run.state not in UNSTARTED]


def trained(runs: Iterable[Run]) -> list[Run]:
    """Return the started runs without those that were refused, whose strategy does not fit."""
    return [run for run in started(runs) if run.state != "refused"]


def refusals(runs: Iterable[Run]) -> list[str]:
    """Return why runs were refused, a line a reason."""
    reasons = Counter((run.error or "").partition("\n")[0] for run in runs if run.state == "refused")
    return [f"refused: {reason} ({count_of(count, 'run')})" for reason, count in reasons.items()]


def _found(folder: str, depth: int, skipped: list[tuple[Path, str]]) -> Iterator[tuple[str, bytes]]:
    """Yield each run folder at or below `folder` with the bytes of its status.json, in the order of names."""
    try:
        yield folder, read_bytes(f"{folder}/status.json")
        return
    except FileNotFoundError:
        pass
    except Unreadable as error:
        skipped.append((Path(folder), str(error)))
        return
    below: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == "summary.json":
                    skipped.append((Path(folder), "status.json is missing"))
                    return
                if entry.is_symlink():
                    if entry.is_dir():
                        skipped.append((Path(entry.path), "a link to a folder is not followed"))
                elif entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
    except OSError as error:
        skipped.append((Path(folder), f"cannot be opened ({error.strerror})"))
        return
    if depth > 0:
        for path in sorted(below):
            yield from _found(path, depth - 1, skipped)


def _run(folder: str, content: bytes) -> Run:
    status = _json("status.json", content)
    if status.get("state") not in get_args(State):
        raise Unreadable("status.json names no known state")
    state: State = status["state"]
    if state == "running" and not is_locked(f"{folder}/.lock"):
        state = "killed"
    summary = None
    if state in ("done", "diverged", "killed"):
        summary = _summary(folder, status.get("identity"))
    if summary is None and state in ("done", "diverged"):
        raise Unreadable(f"summary.json is missing though the run is {state}")
    if summary is not None:
        state = summary["state"]  # killed between the summary and the status: the run itself was over
    config = flatten((summary or status).get("config"))
    if summary is not None and isinstance(bench := summary.get("bench"), dict):
        config["bench.graph"] = bench.get("graph") is True  # which is no part of the configuration of a training
    seed, order, error = config.get("seed"), status.get("order"), status.get("error")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise Unreadable("the configuration has no seed")
    environment = summary.get("environment") if summary is not None else _environment(folder)
    environment = environment if isinstance(environment, dict) else {}
    if isinstance(workers := environment.get("workers"), int) and workers > 1:
        config["trainer.workers"] = workers  # how many torchrun started, which no key of a configuration says
    run = Run(
        folder=Path(folder),
        state=state,
        identity=str(status.get("identity", "")),
        config=config,
        seed=seed,
        order=order if isinstance(order, int) else 0,
        error=error if isinstance(error, str) else None,
        environment=environment,
        summary=summary,
        evaluations=read_evaluations(folder) if state == "done" else {},
    )
    for entry in run.evaluations.values():
        if summary is not None and _is_same(run, entry):
            summary["measured"] = {name: v for name, v in entry["curve"].items() if v is not None}
    return run


def _summary(folder: str, identity: object) -> dict[str, Any] | None:
    try:
        summary = _json("summary.json", read_bytes(f"{folder}/summary.json"))
    except FileNotFoundError:
        return None
    if summary.get("state") not in ("done", "diverged"):
        raise Unreadable("summary.json names no final state")
    if summary.get("identity") != identity:
        raise Unreadable("summary.json and status.json are of different runs")
    curve = summary.get("curve")
    if not isinstance(curve, dict):
        raise Unreadable("summary.json has no curve")
    summary["curve"] = {name: _column(name, values) for name, values in curve.items()}
    if len({len(values) for values in summary["curve"].values()}) > 1:
        raise Unreadable("summary.json: the curves differ in length")
    return summary


def _column(name: str, values: object) -> array.array[float]:
    """Return a curve as an array of floats; null (it was not finite) becomes nan; so does what no mean can hold."""
    if not isinstance(values, list):
        raise Unreadable(f"summary.json: curve {name[:40]!a} is not a list")
    try:
        column = array.array("d", values)
    except (TypeError, OverflowError):
        try:
            column = array.array("d", [math.nan if value is None else value for value in values])
        except (TypeError, OverflowError) as error:  # JSON has no bound for whole numbers, a float has
            raise Unreadable(f"summary.json: curve {name[:40]!a} holds something else than numbers") from error
    if name.endswith(SHARES) and (min(column, default=0) < 0 or max(column, default=0) > 1):
        raise Unreadable(f"summary.json: curve {name[:40]!a} is not of shares from 0 to 1")
    if not math.hypot(*column) <= LARGEST:  # so none is beyond it; a look at each takes four times as long
        return array.array("d", [value if abs(value) <= LARGEST else math.nan for value in column])
    return column


def _environment(folder: str) -> object:
    """Return the environment of a run that has no summary, or None: it says only which data the run was on."""
    try:
        return _json("environment.json", read_bytes(f"{folder}/environment.json"), schema=None)
    except (FileNotFoundError, Unreadable):
        return None


def _json(name: str, content: bytes, schema: int | None = SCHEMA) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise Unreadable(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise Unreadable(f"{name} is not JSON" if content.strip(b"\0 \n") else f"{name} is empty") from error
    if not isinstance(value, dict):
        raise Unreadable(f"{name} is not a JSON object")
    if schema is not None:
        version = value.get("schema")
        if not isinstance(version, int) or isinstance(version, bool):
            raise Unreadable(f"{name} has no schema number")
        if version > schema:
            raise Unreadable(f"{name} was written by a newer bnlab (schema {version}, known: {schema})")
    return value


def flatten(config: object) -> dict[str, Any]:
    """Return a nested configuration as dotted keys and scalars; a list becomes text as one would type it, `[32,64]`.

    Errors: Unreadable when it is no mapping or nested too deeply.
    """
    if not isinstance(config, dict):
        raise Unreadable("the configuration is missing")
    flat: dict[str, Any] = {}
    _flatten_into(flat, config, "", DEEPEST_CONFIG)
    return flat


def _flatten_into(flat: dict[str, Any], node: dict[str, Any], prefix: str, depth: int) -> None:
    if depth == 0:
        raise Unreadable("the configuration is nested too deeply")
    for key, value in node.items():
        if isinstance(value, dict):
            _flatten_into(flat, value, f"{prefix}{key}.", depth - 1)
        elif isinstance(value, list):
            if any(isinstance(item, (dict, list)) for item in value):
                raise Unreadable("the configuration holds nested lists")
            flat[prefix + key] = f"[{','.join(map(str, value))}]"
        else:
            flat[prefix + key] = value
        if len(flat) > MOST_KEYS:
            raise Unreadable(f"the configuration has more than {MOST_KEYS} keys")


def is_locked(path: str) -> bool:
    """Return whether a live process holds the run's lock; a shared lock is tried, so that readers do not collide."""
    try:
        import fcntl

        lock = open_plain(path, os.O_RDONLY)
    except (ImportError, OSError):  # Windows, where no run is trained; or no lock
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(lock)
    return False


def _no_run(folder: Path) -> ConfigError:
    """Return what to say of a path that is no run folder: the runs below it, sorted by number, or how to name one."""
    if not os.path.isdir(folder):
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        return ConfigError(f"{folder}: {what}\n{_NAME_A_RUN}")
    runs = sorted((run for run, _ in _found(str(folder), DEEPEST_FOLDER, [])), key=_by_number)
    if not runs:
        return ConfigError(f"{folder}: no run here (status.json is missing)\n{_NAME_A_RUN}")
    if len(runs) == 1:
        return ConfigError(f"{folder}: no run here; it holds 1 run\ngive that one: {runs[0]}")
    between = "or" if len(runs) == 2 else "to"
    return ConfigError(
        f"{folder}: no run here; it holds {len(runs):,} runs\ngive one of them: {runs[0]} {between} {runs[-1]}"
    )


def _by_number(path: str) -> list[tuple[bool, int, str]]:
    """Sort key of a path: parts that are numbers by size, before all others."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.split(os.sep)]


def read_documents(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return one run's status and summary as written; the summary is empty where the run wrote none.

    The environment of such a run, which has a file of its own, stands in the summary all the same.
    Errors: ConfigError when the folder is no run, RecordError when its run cannot be read.
    """
    if not os.path.lexists(f"{folder}/status.json"):
        raise _no_run(folder)
    try:
        status = _json("status.json", read_bytes(f"{folder}/status.json"))
    except FileNotFoundError as error:
        raise _no_run(folder) from error  # it went away just now
    except Unreadable as error:
        raise RecordError(f"{folder}: {error}") from error
    if status.get("state") == "running" and not is_locked(f"{folder}/.lock"):
        status["state"] = "killed"
    try:
        return status, _json("summary.json", read_bytes(f"{folder}/summary.json"))
    except FileNotFoundError:
        environment = _environment(str(folder))
        return status, {"environment": environment} if isinstance(environment, dict) else {}
    except Unreadable as error:
        raise RecordError(f"{folder}: {error}") from error
