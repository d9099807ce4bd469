"""What a run measures at every evaluation: each split in evaluation mode, and the gap to training mode on a probe.

`eval.stats` says which statistics the layers that keep some evaluate with; the others are as they are:

running: what the strategy evaluates with, a moving average or, for one that reads the training set, its statistics
under the current weights. precise, population: those of the training set as training sees it, augmented and with
dropout, in one pass with training behaviour or exactly, layer after layer. batch, test: those of what is evaluated, of
each batch or of the whole split; a sample's figures then depend on the others (transductive). mixed: running and batch
weighed by sample counts. folded: running, merged into the weights before them. none: every normalization layer is left
out, gamma and beta with it, whether it keeps statistics or not.

Statistics that are put in are taken out again, so that evaluating never changes training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.data.bundle import DataBundle, Split
from bnlab.measure.by_layer import LayerGap, layer_gaps
from bnlab.measure.discrepancy import Gap, calibration_error, logits_of, score
from bnlab.measure.folding import check_foldable, folded
from bnlab.measure.layer_statistics import Statistics, gatherer, running_layers
from bnlab.measure.modes import evaluating, left_out, training_statistics
from bnlab.measure.moments import InstanceMoments, Moments
from bnlab.measure.population_statistics import adopted, hooked, mixed_with_batch, population_of, precise
from bnlab.measure.probe_batches import Probe, probe_indices
from bnlab.measure.probe_model import AGREEMENT_SAMPLES, ProbeResult, probe
from bnlab.measure.refresh import refreshed
from bnlab.schema import param
from bnlab.timing import Stopwatch


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """When and on what a run is evaluated."""

    every: float = param(1.0, "epochs between evaluations, or a fraction; the recipe sets it", above=0.0)
    # activations of larger batches leave the cache and the allocator behind: 500 took twice the time
    batch_size: int = param(200, "samples in a batch of an evaluation; only stats=batch and mixed depend on it", low=1)
    probe_samples: int = param(2048, "fixed training and test samples for the train-versus-eval gap", low=1)
    stats: Literal["running", "precise", "population", "batch", "test", "mixed", "folded", "none"] = param(
        "running",
        "statistics that evaluation normalizes with",
    )
    prior: float = param(16.0, "samples that the running statistics count for in stats=mixed", low=0.0)
    stride: int = param(1, "statistics of stats=batch and mixed from every k-th row and column", low=1)
    shifted: str = param("none", "what the test images undergo, with its severity, such as blur-5")


def check_eval(model: nn.Module, config: EvalConfig) -> None:
    """Refuse statistics of evaluation that the model cannot have. Errors: IncompatibleError."""
    if config.stats == "folded":
        check_foldable(model)


LAYER_FIGURES = ("mean_z", "mean_z_max", "log_std_ratio", "log_std_ratio_max")  # of a LayerGap


@dataclass(frozen=True)
class Figure:
    """One figure of one split at one evaluation."""

    split: str
    metric: str
    value: float
    samples: int


@dataclass(frozen=True)
class Findings:
    """What one evaluation came to."""

    figures: list[Figure]
    layers: dict[str, list[LayerGap]]  # by what the running statistics are held against: probe, population
    discrepancy_seconds: float = 0.0  # that went into telling training mode from evaluation mode


class Evaluator:
    """Evaluates a model on the validation and test splits and on a fixed sample of the training split.

    The probe is a fixed sample of the test split, the same for every seed and strategy. It goes through the model once
    as in training and once as in evaluation, in the same batches of the size of the training batches: that is what the
    statistics of a batch depend on, and a model that does not depend on them gives the same bits twice, so that its gap
    is 0 and not merely small. In training mode each batch is the next step after the same past.

    `device_batches` puts a split on the device, plain or as training sees it. With `in_full` every evaluation also
    takes the measurements of `bnlab probe`.
    """

    def __init__(
        self,
        bundle: DataBundle,
        config: EvalConfig,
        train_batch_size: int,
        training_set: Batches,
        device_batches: Callable[[Split, bool], Batches],
        precision: Callable[[], AbstractContextManager[object]],
        in_full: bool = False,
    ) -> None:
        self._config = config
        if config.shifted != "none":
            bundle = replace(bundle, test=shifted_as(bundle.test, config.shifted))
        self._training_set = training_set
        self._probe_batch = train_batch_size
        self._precision = precision
        chosen = {
            name: probe_indices(len(split), config.probe_samples, train_batch_size)
            for name, split in (("train", bundle.train), ("test", bundle.test))
        }
        train_probe = bundle.train.take(chosen["train"])
        others = {"train": train_probe, "valid": bundle.valid}
        self.samples = {"train": len(train_probe), "valid": len(bundle.valid), "test": len(bundle.test)}
        self._others = {name: device_batches(split, False) for name, split in others.items() if len(split)}
        self._test = device_batches(bundle.test, False)
        beyond = torch.ones(len(bundle.test), dtype=torch.bool)
        beyond[chosen["test"]] = False
        self._probed = chosen["test"].to(self._test.device)
        self._beyond = beyond.nonzero().flatten().to(self._test.device)  # test samples that are not in the probe
        self._probes: list[Probe] = []
        if in_full:
            augments = training_set.augment.active
            for name, split in (("train", train_probe), ("test", bundle.test.take(chosen["test"]))):
                plain = self._others["train"] if name == "train" else device_batches(split, False)
                augmented = device_batches(split, True) if augments else None
                labels = split.labels.to(plain.device)
                self._probes.append(Probe(name, plain, augmented, train_batch_size, labels))

    def evaluate(self, model: nn.Module) -> Findings:
        """Measure the model and leave it as it was: modes, buffers and random state."""
        with self._precision():
            fresh = refreshed(model, self._training_set)
            with adopted(model, fresh):
                evaluated, figures = self._splits_of(model)
            watch = Stopwatch(self._test.device)
            watch.start()
            # before its next step, a strategy that refreshes at every step would have these too
            with adopted(model, {layer: both for layer, both in fresh.items() if layer.refresh_every == 1}):
                trained, seen = self._as_in_training(model)
            with adopted(model, fresh):
                layers = {"probe": layer_gaps(model, seen)}
            figures += _gaps(trained, *evaluated["test"])
            figures += _calibration(evaluated)
            if self._probes:
                probed = probe(model, self._probes, self._training_set, self._config.probe_samples)
                figures += _in_full(probed)
                layers["population"] = list(probed.layers)
            watch.stop()
        return Findings(figures, layers, watch.seconds)

    def _splits_of(self, model: nn.Module) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Figure]]:
        """Return logits and labels of each split, those of the test probe first, with loss and accuracy."""
        evaluated: dict[str, tuple[Tensor, Tensor]] = {}
        figures: list[Figure] = []
        with adopted(model, self._of_training_set(model)):
            judged = folded(model) if self._config.stats == "folded" else model
            with evaluating(judged):
                for split, batches in self._others.items():
                    with self._of_evaluated(model, batches):
                        evaluated[split] = logits_of(judged, batches.sequential(self._config.batch_size))
                with self._of_evaluated(model, self._test):
                    evaluated["test"] = self._of_test(judged)
            if judged is not model:
                with evaluating(model):
                    unfolded, labels = logits_of(model, self._probe_in_batches())
                error = (evaluated["test"][0][: len(labels)] - unfolded).abs().max() / unfolded.square().mean().sqrt()
                figures.append(Figure("test", "fold_error", error.item(), len(labels)))
        for split, (logits, labels) in evaluated.items():
            result = score(logits, labels)
            figures += [
                Figure(split, "loss", result.loss, result.samples),
                Figure(split, "accuracy", result.accuracy, result.samples),
            ]
        return evaluated, figures

    def _of_test(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return logits and labels of the test split, the probe first."""
        size = self._config.batch_size
        if self._config.stats in ("batch", "mixed") and running_layers(model):  # the batches are part of what is asked
            logits, labels = logits_of(model, self._test.sequential(size))
            order = torch.cat([self._probed, self._beyond])
            return logits[order], labels[order]
        beyond = self._test.in_order(self._beyond, size) if len(self._beyond) else ()
        return logits_of(model, itertools.chain(self._probe_in_batches(), beyond))

    def _probe_in_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._test.in_order(self._probed, self._probe_batch)

    def _as_in_training(self, model: nn.Module) -> tuple[Tensor, Statistics]:
        """Return the probe's logits with the layers as in training, and the statistics that the layers saw.

        Those are over all batches, of each layer that keeps some, in order of execution.
        """
        gathered: dict[nn.Module, Moments | InstanceMoments] = {}

        def gather(layer: nn.Module, x: Tensor) -> None:
            gathered.setdefault(layer, gatherer(layer)).add(x)

        with training_statistics(model) as start_again, hooked(running_layers(model), gather):

            def batches() -> Iterator[tuple[Tensor, Tensor]]:
                for batch in self._probe_in_batches():
                    start_again()
                    yield batch

            logits, _ = logits_of(model, batches())
        return logits, {layer: moments.result() for layer, moments in gathered.items()}

    def _of_training_set(self, model: nn.Module) -> Statistics:
        """Return the statistics of the training set that evaluation was asked to use; none where it was not."""
        if self._config.stats == "precise":
            return precise(model, self._training_set.sequential(self._probe_batch, augmented=True))
        if self._config.stats == "population":
            return population_of(model, self._training_set)
        return {}

    def _of_evaluated(self, model: nn.Module, batches: Batches) -> AbstractContextManager[None]:
        """Return the context that puts in statistics of what is evaluated, where they were asked for."""
        if self._config.stats == "test":
            return adopted(model, population_of(model, batches, plain=True))
        if self._config.stats in ("batch", "mixed"):
            prior = 0.0 if self._config.stats == "batch" else self._config.prior
            return mixed_with_batch(model, prior, stride=self._config.stride)
        return left_out(model) if self._config.stats == "none" else nullcontext()


def shifted_as(test: Split, shift: str) -> Split:
    """Return the test split under a shift such as `blur-5`, in the order in which `bnlab shift` takes its samples."""
    from bnlab.data.shifts import severity_of, shifted  # with torchvision's transforms, which take time to import

    return shifted(test.take(probe_indices(len(test), len(test), batch_size=1)), *severity_of(shift))


def _gaps(trained: Tensor, evaluated: Tensor, labels: Tensor) -> list[Figure]:
    """Compare the probe's logits in training with the first of those in evaluation: training minus evaluation."""
    evaluated, labels = evaluated[: len(trained)], labels[: len(trained)]
    gap, training, evaluation = Gap(trained, evaluated, labels), score(trained, labels), score(evaluated, labels)
    values = {
        "acc_gap": training.accuracy - evaluation.accuracy,
        "loss_gap": training.loss - evaluation.loss,
        "flip_rate": gap.flips.mean().item(),
        "kl": gap.kl.mean().item(),
        "logit_rms": gap.logit_rms,
    }
    return [Figure("test", name, value, len(labels)) for name, value in values.items()]


def _calibration(evaluated: Mapping[str, tuple[Tensor, Tensor]]) -> list[Figure]:
    splits = [(split, *evaluated[split]) for split in ("valid", "test") if split in evaluated]
    return [Figure(split, "ece", calibration_error(logits, labels), len(labels)) for split, logits, labels in splits]


def _in_full(probed: ProbeResult) -> list[Figure]:
    """Return the figures of `bnlab probe`, without their intervals."""
    figures = [
        Figure(gaps.split, "mate_noise", gaps.mate_noise, gaps.samples)
        for gaps in probed.gaps
        if gaps.mate_noise is not None
    ]
    for decomposition in probed.decompositions:
        for term in (*decomposition.terms, decomposition.total):
            name = f"term_{term.name.replace(' ', '_')}"
            for what, value in (("acc", term.accuracy.value), ("loss", term.loss.value), ("kl", term.moved)):
                figures.append(Figure(decomposition.split, f"{name}_{what}", value, term.accuracy.n))
    sizes = {"size_error": [row.largest for row in probed.agreement], "size_flips": [r.flips for r in probed.agreement]}
    samples = min(AGREEMENT_SAMPLES, probed.gaps[-1].samples)
    for name, values in sizes.items():
        worst = math.nan if any(map(math.isnan, values)) else max(values, default=0.0)
        figures.append(Figure("test", name, worst, samples))
    for way in probed.curve:
        name = f"stats_{way.name}" if way.batch_size is None else f"batch_curve_{way.batch_size}"
        figures.append(Figure("test", name, way.accuracy.value, way.samples))
    return figures


def evaluation_steps(every: float, steps_per_epoch: int, total: int) -> Iterator[int]:
    """Yield the steps after which to evaluate: every `every` epochs, and the last."""
    last = 0
    for count in itertools.count(1):
        step = round(count * every * steps_per_epoch)
        if step >= total:
            break
        if step > last:
            yield step
        last = step
    yield total
