"""A trained model on shifted test images, with stored statistics and with those of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from bnlab.data.batches import Batches
from bnlab.data.bundle import Split
from bnlab.data.shifts import SHIFTS, shifted
from bnlab.errors import IncompatibleError
from bnlab.experiment.setup import device_batches
from bnlab.experiment.trained_model import TrainedModel
from bnlab.measure.layer_statistics import running_layers
from bnlab.measure.population_statistics import adopted
from bnlab.measure.probe_batches import probe_indices
from bnlab.measure.refresh import refreshed
from bnlab.measure.robustness import Condition, robustness


@dataclass(frozen=True)
class Study:
    """What `bnlab shift` prints; the first condition is the test images as they are."""

    label: str
    batch_size: int
    prior: float
    available: int  # test images
    keeps_statistics: bool  # whether there is a choice of statistics at all
    conditions: tuple[Condition, ...]
    unread: str = ""  # layers that keep something in training that is not read

    @property
    def stats(self) -> list[str]:
        """The choices of statistics, in order."""
        return [found.stats for found in self.conditions[0].found]

    @property
    def samples(self) -> int:
        """Test images taken, before classes are thinned out."""
        return self.conditions[0].found[0].samples


def shift_study(
    trained: TrainedModel,
    shifts: Sequence[str],
    severities: Sequence[int],
    stats: Sequence[str],
    batch_size: int,
    tell: Callable[[str], None],
) -> Study:
    """Evaluate the unshifted test probe, then every shift at every severity; `tell` hears of each.

    Errors: IncompatibleError where the model has no statistics of the test set.
    """
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
            results = robustness(model, samples, on_device, stats, batch_size, config.eval.prior)
        except IncompatibleError as error:
            reason = str(error).partition("\n")[0]
            raise IncompatibleError(
                f"{reason}\nomit the statistics of the test set: --stats running,mixed,batch"
            ) from error
        amount = kind.amounts[severity - 1] if kind else None
        return Condition(name, severity, amount, kind.unit if kind else "", results)

    conditions = []
    with trained.examined(), adopted(model, refreshed(model, trained.train)):
        for name, severity in [("none", 0), *product(shifts, severities)]:
            tell(f"evaluating {name} {severity}" if severity else "evaluating the test images as they are")
            conditions.append(condition(name, severity))
    keeps = bool(running_layers(model))
    available = len(bundle.test)
    return Study(trained.label, batch_size, config.eval.prior, available, keeps, tuple(conditions), trained.unread)
