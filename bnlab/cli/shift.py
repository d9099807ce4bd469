"""`bnlab shift`: a trained model on shifted test images, with stored statistics and with those of the images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.data.shifts import SEVERITIES, SHIFTS, shifted
from bnlab.errors import ConfigError, IncompatibleError, did_you_mean
from bnlab.experiment.setup import device_batches
from bnlab.experiment.trained_model import TrainedModel, find
from bnlab.measure.layer_statistics import running_layers
from bnlab.measure.population_statistics import adopted
from bnlab.measure.probe_batches import probe_indices
from bnlab.measure.refresh import refreshed
from bnlab.measure.robustness import STATS, Condition, robustness
from bnlab.report.check_report import checking
from bnlab.report.console import messages, results
from bnlab.report.rows import TIDY_FORMATS
from bnlab.report.shift_report import Study, shift_rows, shift_table


def shift(
    targets: Sequence[str],
    module: str | None,
    weights: Path | None,
    data: str | None,
    shifts: Sequence[str] | None,
    severity: str,
    stats: Sequence[str] | None,
    batch_size: int,
    form: str,
) -> None:
    """Print how a model does under shifts of its test images.

    `shifts` and `stats` hold names, also several with commas in between; None: all. `severity` is such as "1,3,5",
    `form` is `table` or one of TIDY_FORMATS. Errors: ConfigError, RecordError.
    """
    names = _chosen("--shift", shifts, SHIFTS)
    choices = _chosen("--stats", stats, STATS)
    severities = [int(text) for text in _chosen("--severity", [severity], [str(known) for known in SEVERITIES])]
    trained = find(targets, module, weights, data)
    study = _study(trained, names, severities, choices, batch_size)
    out = results()
    if form == "table":
        out.print(shift_table(study, out))
    else:
        out.emit(TIDY_FORMATS[form](*shift_rows(study)))


def _chosen(option: str, wanted: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """Return those of `known` that `wanted` names, in the order of `known`; all for None. Errors: ConfigError."""
    known = list(known)
    if wanted is None:
        return known
    named = [name.strip() for entry in wanted for name in entry.split(",")]
    for name in named:
        if name not in known:
            raise ConfigError(
                f"{option} {name}: no such choice{did_you_mean(name, known)}\nthere are: {', '.join(known)}"
            )
    return [name for name in known if name in named]


def _study(
    trained: TrainedModel, names: Sequence[str], severities: Sequence[int], stats: Sequence[str], batch_size: int
) -> Study:
    """Evaluate the unshifted test probe, then every shift at every severity."""
    bundle, model = trained.bundle, trained.model
    # every sample counts here, whatever becomes of a short batch in training
    config = replace(trained.config, data=replace(trained.config.data, last_batch="keep"))
    probe = bundle.test.take(probe_indices(len(bundle.test), config.eval.probe_samples, batch_size=1))

    def on_device(split: Split) -> Batches:
        return device_batches(config, bundle, split, trained.device, training=False)

    def condition(name: str, severity: int) -> Condition:
        kind = SHIFTS.get(name)
        samples = shifted(probe, name, severity) if kind else probe
        try:
            found = robustness(model, samples, on_device, stats, batch_size, config.eval.prior)
        except IncompatibleError as error:
            reason = str(error).partition("\n")[0]
            raise IncompatibleError(
                f"{reason}\nleave out the statistics of the test set: --stats running,mixed,batch"
            ) from error
        amount = kind.amounts[severity - 1] if kind else None
        return Condition(name, severity, amount, kind.unit if kind else "", found)

    conditions = []
    with checking(messages()) as tell, trained.examined(), adopted(model, refreshed(model, trained.train)):
        for name, severity in [("none", 0), *product(names, severities)]:
            tell(f"{name} {severity}" if severity else "the test images as they are")
            conditions.append(condition(name, severity))
    keeps = bool(running_layers(model))
    return Study(trained.label, batch_size, config.eval.prior, len(bundle.test), keeps, tuple(conditions))
