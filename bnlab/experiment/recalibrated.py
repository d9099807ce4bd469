"""A trained model's statistics taken anew from its training set, and the file of weights that holds them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

from bnlab.errors import IncompatibleError
from bnlab.experiment.trained_model import TrainedModel
from bnlab.measure.recalibration import (
    Recalibration,
    Stats,
    check_recalibratable,
    new_entries,
    recalibration,
    samples_used,
)
from bnlab.measure.verdict import TO_BE_READ
from bnlab.training import checkpoint


def new_file(
    trained: TrainedModel, weights: Path | None, stats: Stats, samples: int | None, *, plain: bool
) -> tuple[Path, int]:
    """Return the file that is usual for new statistics, and over how many training samples these will be.

    It lies in the run's folder, or beside the `weights` that go with a module. Errors: IncompatibleError where there is
    nothing to recalibrate.
    """
    try:
        with trained.examined():
            check_recalibratable(trained.model)
    except IncompatibleError as error:
        said = str(error)
        if trained.unread:  # then they are not to be left as they are
            said = f"nothing to recalibrate that bnlab reads; in training {trained.unread} keep something\n{TO_BE_READ}"
        raise IncompatibleError(f"{trained.label}: {said}") from error
    count = samples_used(trained.train, stats, samples, trained.batch_size)
    folder = trained.folder or (Path() if weights is None else weights.parent)
    of = "" if weights is None else f"{weights.stem}-"
    return folder / f"{of}recalibrated-{stats}-{'plain-' * plain}{count}.pt", count


def recalibrated(trained: TrainedModel, stats: Stats, samples: int | None, *, plain: bool = False) -> Recalibration:
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
            plain=plain,
        )


def save(file: Path, trained: TrainedModel, weights: Path | None, new: Recalibration) -> None:
    """Write what the old file holds, with the new statistics; of a run also what they are over.

    Without an old file, as of a module without weights, it is the model's state dict.
    """
    place = trained.place
    content = trained.state if weights is None else checkpoint.load_file(weights)
    if content is None:
        content = {place.names[name]: value for name, value in trained.model.state_dict().items()}
    inside = cast(dict[str, Any], copy.copy(place.state_in(content)))  # with what torch keeps beside the tensors
    entries = new_entries(trained.model, new.statistics)  # some old files lack the counts
    inside.update({place.names[name]: value for name, value in entries.items() if name in place.names})
    state = place.replaced(content, inside)
    if trained.folder is not None and place.keys:
        state["recalibrated"] = {"stats": new.stats, "samples": new.samples}
    checkpoint.save_file(file, state)
