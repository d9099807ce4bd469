"""`bnlab recalibrate`: the statistics of the training set in place of a trained model's, as a new file of weights."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from bnlab.errors import ConfigError, IncompatibleError
from bnlab.experiment.trained_model import INSIDE, TrainedModel, find
from bnlab.measure.recalibration import (
    Recalibration,
    Stats,
    check_recalibratable,
    new_entries,
    recalibration,
    samples_used,
)
from bnlab.report.console import messages, results
from bnlab.report.probe_report import working
from bnlab.report.recalibration_report import Recalibrated, recalibration_head, recalibration_rows, recalibration_tables
from bnlab.report.rows import TIDY_FORMATS
from bnlab.training import checkpoint


def recalibrate(
    targets: Sequence[str],
    module: str | None,
    weights: Path | None,
    data: str | None,
    stats: str,
    samples: int | None,
    out: Path | None,
    form: str,
) -> None:
    """Recalibrate the model that the command line names into the new file `out`, and print what that changes.

    `stats` is `population` or `precise`, `samples` the number of training samples (None: all); `form` is `table` or one
    of TIDY_FORMATS. Errors: ConfigError, also where `out` exists or its folder does not; IncompatibleError where there
    is nothing to recalibrate; RecordError, DataError, EnvironmentFault. After any of them there is no new file.
    """
    how, err = cast(Stats, stats), messages()
    if out is not None:
        _check_place(out)
    with working(err) as tell:
        tell("reading model and data")
        trained = find(targets, module, weights, data)
        try:
            check_recalibratable(trained.model)
        except IncompatibleError as error:
            raise IncompatibleError(f"{trained.label}: {error}") from error
        count = samples_used(trained.train, how, samples, trained.batch_size)
        place = out or _folder(trained, weights) / f"recalibrated-{stats}-{count}.pt"
        checkpoint.check_new_file(place)
        if samples is not None and count < min(samples, len(trained.train)):
            of = f"whole batches of {trained.batch_size} are taken"
            err.say(f"stats={stats}: {of}, {count} of the {samples} samples asked for")
        tell(f"recalibrating {trained.label}")
        found = _measured(trained, how, samples)
        checkpoint.save_file(place, _state(trained, weights, found))
    report = Recalibrated(trained.label, trained.about, str(place), found)
    terminal = results()
    if form == "table":
        terminal.print(recalibration_tables(report, terminal))
    else:
        terminal.emit(TIDY_FORMATS[form](recalibration_head(report), recalibration_rows(report)))
    beside = [word for option, value in (("--module", module), ("--data", data)) if value for word in (option, value)]
    err.say(f"{shlex.join(['bnlab', 'probe', *targets, *beside, '--checkpoint', str(place)])} reads it")


def _check_place(out: Path) -> None:
    """Refuse a place for the new file before anything is read. Errors: ConfigError, EnvironmentFault."""
    if not out.parent.exists():
        raise ConfigError(f"{out}: the folder {out.parent} does not exist\nmake it, or name another by --out")
    checkpoint.check_new_file(out)


def _folder(trained: TrainedModel, weights: Path | None) -> Path:
    """Return where the new file lies: in the run's folder, or beside the weights that go with a module."""
    if trained.folder is not None:
        return trained.folder
    return Path() if weights is None else weights.parent


def _measured(trained: TrainedModel, stats: Stats, samples: int | None) -> Recalibration:
    judged = {"train": trained.probe("train").plain} if trained.valid is None else {"valid": trained.valid}
    with trained.examined():
        return recalibration(
            trained.model,
            trained.train,
            judged | {"test": trained.test},
            stats,
            samples,
            trained.batch_size,
            trained.config.eval.batch_size,
        )


def _state(trained: TrainedModel, weights: Path | None, found: Recalibration) -> dict[str, Any]:
    """Return what the old file holds, with the new statistics; of a run also what they are over.

    Without an old file, as of a module without weights, it is the model's state dict.
    """
    old = trained.model.state_dict() if trained.state is None else trained.state
    if trained.state is None and weights is not None:
        old = checkpoint.load_file(weights)
    entries = new_entries(trained.model, found.statistics)
    inside = next((key for key in INSIDE if isinstance(old.get(key), Mapping)), None)
    if inside is None:
        return _replaced(old, entries, trained.model)
    new = {**old, inside: _replaced(old[inside], entries, trained.model)}
    return new if trained.folder is None else new | {"recalibrated": {"stats": found.stats, "samples": found.samples}}


def _replaced(weights: Mapping[str, Any], entries: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """Return `weights` with `entries` in their places, also where all names stand below that of a wrapper.

    Where a model loads names of its own, they are those of its state dict.
    """
    needed = [name for name in entries if not name.endswith("num_batches_tracked")]  # some old files lack the counts
    parts = next(iter(weights)).split(".")
    wrappers = ("".join(f"{part}." for part in parts[:depth]) for depth in range(len(parts)))
    prefix = next((each for each in wrappers if all(each + name in weights for name in needed)), None)
    # a copy with what torch keeps beside the tensors
    new = cast(dict[str, Any], copy.copy(model.state_dict() if prefix is None else weights))
    new.update({name: value for key, value in entries.items() if (name := (prefix or "") + key) in new})
    return new
