"""A trained model's statistics taken anew from its training set, and the file of weights that holds them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from bnlab.errors import IncompatibleError
from bnlab.experiment.trained_model import INSIDE, TrainedModel
from bnlab.measure.recalibration import (
    Recalibration,
    Stats,
    check_recalibratable,
    new_entries,
    recalibration,
    samples_used,
)
from bnlab.training import checkpoint


def new_file(
    trained: TrainedModel, weights: Path | None, stats: Stats, samples: int | None, out: Path | None
) -> tuple[Path, int]:
    """Return the file to write, and over how many training samples the statistics will be.

    Without `out` it lies in the run's folder, or beside the `weights` that go with a module. Errors: ConfigError where
    it exists; IncompatibleError where there is nothing to recalibrate; EnvironmentFault.
    """
    try:
        check_recalibratable(trained.model)
    except IncompatibleError as error:
        raise IncompatibleError(f"{trained.label}: {error}") from error
    count = samples_used(trained.train, stats, samples, trained.batch_size)
    folder = trained.folder or (Path() if weights is None else weights.parent)
    file = out or folder / f"recalibrated-{stats}-{count}.pt"
    checkpoint.check_new_file(file)
    return file, count


def recalibrated(trained: TrainedModel, stats: Stats, samples: int | None) -> Recalibration:
    """Return the new statistics and what they change on the validation split, else the training probe, and the test
    split; the model is left as it was."""
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


def save(file: Path, trained: TrainedModel, weights: Path | None, new: Recalibration) -> None:
    """Write what the old file holds, with the new statistics; of a run also what they are over.

    Without an old file, as of a module without weights, it is the model's state dict.
    """
    old = trained.model.state_dict() if trained.state is None else trained.state
    if trained.state is None and weights is not None:
        old = checkpoint.load_file(weights)
    entries = new_entries(trained.model, new.statistics)
    inside = next((key for key in INSIDE if isinstance(old.get(key), Mapping)), None)
    if inside is None:
        state = _replaced(old, entries, trained.model)
    else:
        state = {**old, inside: _replaced(old[inside], entries, trained.model)}
        if trained.folder is not None:
            state["recalibrated"] = {"stats": new.stats, "samples": new.samples}
    checkpoint.save_file(file, state)


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
