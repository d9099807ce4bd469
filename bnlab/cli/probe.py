"""`bnlab probe`: one model in training and in evaluation mode, every measure of the difference, and its causes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnlab.experiment.trained_model import TrainedModel, find
from bnlab.measure.probe_model import probe as measured
from bnlab.measure.verdict import verdict
from bnlab.report.console import messages, results
from bnlab.report.probe_report import Probed, probe_head, probe_rows, probe_tables, working
from bnlab.report.rows import TIDY_FORMATS


def probe(
    targets: Sequence[str], module: str | None, weights: Path | None, data: str | None, samples: int, form: str
) -> None:
    """Print what tells training mode from evaluation mode in the model that the command line names.

    `samples`: training images that the population statistics are over, at most; `form` is `table` or one of
    TIDY_FORMATS. Errors: ConfigError, RecordError, DataError; IncompatibleError of a layer that is called twice in one
    pass.
    """
    with working(messages()) as tell:
        tell("reading model and data")
        trained = find(targets, module, weights, data)
        tell(f"probing {trained.label}")
        with trained.examined():
            probes = [trained.probe("train"), trained.probe("test")]
            probing = measured(trained.model, probes, trained.train, samples)
    found = Probed(
        trained.label,
        trained.about,
        _step(trained),
        trained.batch_size,
        probing,
        tuple(map(verdict, probing.decompositions)),
    )
    out = results()
    if form == "table":
        out.print(probe_tables(found, out))
    else:
        out.emit(TIDY_FORMATS[form](probe_head(found), probe_rows(found)))


def _step(trained: TrainedModel) -> int | None:
    step = (trained.state or {}).get("step")
    return step if isinstance(step, int) else None
