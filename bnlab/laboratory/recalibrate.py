"""`bnlab recalibrate`: the statistics of the training set in place of a trained model's, as a new file of weights."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from bnlab.errors import ConfigError, MisfitError
from bnlab.laboratory.specimen import INSIDE, Specimen, find
from bnlab.measure.recalibration import (
    Recalibration,
    Stats,
    check_recalibratable,
    new_entries,
    recalibration,
    samples_used,
)
from bnlab.report.console import messages, results
from bnlab.report.probe import working
from bnlab.report.recalibration import Recalibrated, recalibration_head, recalibration_rows, recalibration_tables
from bnlab.report.tidy import TIDY_FORMATS
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
    of TIDY_FORMATS. Errors: ConfigError, also where `out` exists or its folder does not; MisfitError where there is
    nothing to recalibrate; RecordError, DataError, EnvironmentFault. After any of them there is no new file.
    """
    how, err = cast(Stats, stats), messages()
    if out is not None:
        _check_place(out)
    with working(err) as tell:
        tell("reading model and data")
        specimen = find(targets, module, weights, data)
        try:
            check_recalibratable(specimen.model)
        except MisfitError as error:
            raise MisfitError(f"{specimen.label}: {error}") from error
        count = samples_used(specimen.train, how, samples, specimen.batch_size)
        place = out or _folder(specimen, weights) / f"recalibrated-{stats}-{count}.pt"
        checkpoint.check_new_file(place)
        if samples is not None and count < min(samples, len(specimen.train)):
            of = f"whole batches of {specimen.batch_size} are taken"
            err.say(f"stats={stats}: {of}, {count} of the {samples} samples asked for")
        tell(f"recalibrating {specimen.label}")
        found = _measured(specimen, how, samples)
        checkpoint.save_file(place, _state(specimen, weights, found))
    report = Recalibrated(specimen.label, specimen.about, str(place), found)
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


def _folder(specimen: Specimen, weights: Path | None) -> Path:
    """Return where the new file lies: in the run's folder, or beside the weights that go with a module."""
    if specimen.folder is not None:
        return specimen.folder
    return Path() if weights is None else weights.parent


def _measured(specimen: Specimen, stats: Stats, samples: int | None) -> Recalibration:
    judged = {"train": specimen.probe("train").plain} if specimen.valid is None else {"valid": specimen.valid}
    with specimen.examined():
        return recalibration(
            specimen.model,
            specimen.train,
            judged | {"test": specimen.test},
            stats,
            samples,
            specimen.batch_size,
            specimen.config.eval.batch_size,
        )


def _state(specimen: Specimen, weights: Path | None, found: Recalibration) -> dict[str, Any]:
    """Return what the old file holds, with the new statistics; of a run also what they are over.

    Without an old file, as of a module without weights, it is the model's state dict.
    """
    old = specimen.model.state_dict() if specimen.state is None else specimen.state
    if specimen.state is None and weights is not None:
        old = checkpoint.load_file(weights)
    entries = new_entries(specimen.model, found.statistics)
    inside = next((key for key in INSIDE if isinstance(old.get(key), Mapping)), None)
    if inside is None:
        return _replaced(old, entries, specimen.model)
    new = {**old, inside: _replaced(old[inside], entries, specimen.model)}
    return new if specimen.folder is None else new | {"recalibrated": {"stats": found.stats, "samples": found.samples}}


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
