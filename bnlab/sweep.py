"""One command line of `bnlab train`: check all its jobs, launch them, say what came of each."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from bnlab import hydra_app, worker
from bnlab.compare.arms import arms_of, short_names, text_of
from bnlab.compare.read import Run, read_runs
from bnlab.errors import BnlabError, MisfitError
from bnlab.measure.metrics import metrics, warnings_of
from bnlab.record.folder import fresh_folder
from bnlab.report.console import messages, results
from bnlab.report.progress import make_progress
from bnlab.watcher import Watcher
from bnlab.workers import ALONE, from_environment

RUNS = Path("runs")
HEADLINE = ("test_accuracy", "acc_gap", "step_ms", "train_seconds")


def launch(overrides: Sequence[str], multirun: bool, config_dir: Path | None) -> int:
    """Train one run or a sweep; print a line a run on stdout; return the exit code.

    Of several workers the first does so; the others run the same jobs unseen and return the same code.
    Errors: ConfigError or EnvironmentFault when any job could not run: then none was started and no folder was made.
    """
    worker.workers = workers = from_environment() or ALONE
    workers.connect()
    return _launch(overrides, multirun, config_dir) if workers.first else _unseen(overrides, multirun, config_dir)


def _unseen(overrides: Sequence[str], multirun: bool, config_dir: Path | None) -> int:
    """Do what the first worker does, in a passing folder, without a word; what is no user's error is still raised."""
    with tempfile.TemporaryDirectory(prefix="bnlab-") as folder, open(os.devnull, "w") as nowhere:
        try:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                code = _launch(overrides, multirun, config_dir, Path(folder))
        except BnlabError as error:
            code = error.exit_code
    worker.workers.outlast()
    return code


def _launch(overrides: Sequence[str], multirun: bool, config_dir: Path | None, folder: Path | None = None) -> int:
    with worker.workers.agreed():
        overrides, trees = _fitting(overrides, multirun, config_dir)
        worker.preflight(trees)
        if folder is None:
            name = trees[0].get("name")
            folder = fresh_folder(RUNS, "-".join(filter(None, [name, "sweep" if multirun else "run"])))
    failure: Exception | None = None
    stopped = 0
    worker.shared_overrides = frozenset(o for o in overrides if not _swept(o))
    with make_progress(sys.stderr) as progress:
        worker.watcher = progress
        try:
            if multirun:
                progress.sweep_started(len(trees))
            hydra_app.run(worker.job, overrides, folder, multirun, config_dir)
        except KeyboardInterrupt:
            stopped = 130
        except SystemExit as stop:
            stopped = stop.code if isinstance(stop.code, int) else 1
        except Exception as error:  # a launcher gave up; what its jobs did is on the disk
            failure = error
    worker.watcher = Watcher()
    trouble = _report(folder, len(trees), failure, multirun, "was not started" if stopped else "left no record")
    return stopped or trouble


def _fitting(
    overrides: Sequence[str], multirun: bool, config_dir: Path | None
) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """Return the overrides and the jobs they stand for, without the strategies of `norm=glob(...)` that do not fit.

    They are named on stderr. A strategy that the command line names itself is left to `preflight`, which refuses it.
    Errors: MisfitError when none is left.
    """
    planned = hydra_app.planned(overrides, multirun, config_dir)
    found = hydra_app.globbed(overrides, "norm", config_dir) if any("glob(" in line for line in overrides) else None
    if found is None:
        return overrides, [tree for _, tree in planned]
    place, names = found
    misfits: dict[str, MisfitError] = {}
    trees: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for lines, tree in planned:
        name = next(line.removeprefix("norm=") for line in lines if line.startswith("norm="))
        trees[name].append(tree)
        try:
            worker.preflight([tree])
        except MisfitError as error:
            misfits[name] = error
    for name, misfit in misfits.items():
        reason = str(misfit).partition("\n")[0].removeprefix(f"norm={name}: ")
        messages().say(f"norm={name} is left out: {reason}")
    left = [name for name in names if name not in misfits]
    if not left:
        raise MisfitError(f"{overrides[place]}: none of these strategies fits the rest of the configuration")
    chosen = [*overrides[:place], f"norm={','.join(left)}", *overrides[place + 1 :]]
    return chosen, [tree for name in left for tree in trees[name]]


def _swept(override: str) -> bool:
    """Return whether an override may stand for several jobs; only the labels of jobs depend on it."""
    value = override.partition("=")[2]
    return "," in value or "(" in value


def _report(folder: Path, expected: int, failure: Exception | None, multirun: bool, absent: str) -> int:
    """Print a line a run on stdout and what went wrong on stderr; return the exit code.

    `absent` says what is to be thought of a job without a folder.
    """
    runs, skipped = read_runs([folder])
    out, err = results(), messages()
    arms, changed = arms_of(runs) if runs else ([], [])
    names = short_names(changed)
    lines = {
        run.order: _line(run, {names[key]: text_of(arm.values[key]) for key in changed if key in arm.values})
        for arm in arms
        for run in arm.runs
    }
    for order in sorted(lines):
        out.say(lines[order])
    doubts = Counter(warning for run in runs if run.summary for warning in warnings_of(run.summary))
    for warning, count in doubts.items():
        err.say(f"warning: {warning}" + (f" ({count} of {len(runs)} runs)" if multirun else ""))
    bad = [run for run in runs if run.state != "done"]
    for run in bad:
        err.say(f"{run.folder} {run.state}: {(run.error or 'no reason recorded').partition(chr(10))[0]}")
    for path, reason in skipped:
        err.say(f"{path}: {reason}")
    missing = expected - len(runs) - len(skipped)
    if missing > 0:
        err.say(f"{missing} of {expected} jobs: {absent}")
    if failure is not None:
        err.say(f"the launcher stopped: {str(failure).partition(chr(10))[0]}")
    if multirun:
        err.say(f"{len(runs) - len(bad)} of {expected} jobs done; bnlab compare {folder}")
    return int(bool(bad or skipped or missing > 0 or failure is not None))


def _line(run: Run, arm: Mapping[str, str]) -> str:
    """Return folder, status, what the run was and its headline figures, as `bnlab list metrics` has their units."""
    parts = [str(run.folder), run.state, *(f"{key}={value}" for key, value in arm.items()), f"seed={run.seed}"]
    for name in HEADLINE:
        metric = metrics[name]
        value = metric.derive(run.summary) if run.summary and run.state == "done" else None
        if isinstance(value, float):
            parts.append(f"{name}={value * metric.scale:.4g}")
    return "  ".join(parts)
