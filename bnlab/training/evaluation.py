"""What a run measures at every evaluation: each split in evaluation mode, and the gap to training mode on probes.

`eval.stats` says which statistics the layers that keep some evaluate with; the others are as they are:

running: what the strategy evaluates with, a moving average or, for one that reads the training set, its statistics
under the current weights. precise, population: those of the training set, in one pass with training behaviour or
exactly, layer after layer. batch, test: those of what is evaluated, of each batch or of the whole split; a sample's
figures then depend on the others (transductive). mixed: running and batch weighed by sample counts. folded: running,
merged into the weights before them.

Statistics that are put in are taken out again, so that evaluating never changes training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bnlab.data import Batches, DataBundle, Split
from bnlab.measure.calibration import refreshed
from bnlab.measure.discrepancy import gap, logits_of, score
from bnlab.measure.folding import check_foldable, folded
from bnlab.measure.layers import Statistics, running_layers
from bnlab.measure.modes import evaluating, training_statistics
from bnlab.measure.population import adopted, mixed_with_batch, plan, population, precise
from bnlab.schema import param
from bnlab.seeding import generator


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """When and on what a run is evaluated."""

    every: float = param(1.0, "epochs between evaluations; a fraction is allowed", above=0.0)
    batch_size: int = param(200, "samples in a batch of an evaluation; only stats=batch and mixed depend on it", low=1)
    probe_samples: int = param(2048, "fixed training and test samples for the train-versus-eval gap", low=1)
    stats: Literal["running", "precise", "population", "batch", "test", "mixed", "folded"] = param(
        "running", "statistics that evaluation normalizes with"
    )
    prior: float = param(16.0, "samples that the running statistics count for in stats=mixed", low=0.0)


def check_eval(model: nn.Module, config: EvalConfig) -> None:
    """Refuse statistics of evaluation that the model cannot have. Errors: MisfitError."""
    if config.stats == "folded":
        check_foldable(model)


@dataclass(frozen=True)
class Measured:
    """One figure of one split at one evaluation."""

    split: str
    metric: str
    value: float
    samples: int


class Evaluator:
    """Evaluates a model on the validation and test splits and on a fixed sample of the training split.

    The probe samples are the same for every seed and strategy. Their training-mode batches have the size of the
    training batches, since that is what the statistics of a batch depend on.
    """

    def __init__(
        self,
        bundle: DataBundle,
        config: EvalConfig,
        train_batch_size: int,
        training_set: Batches,
        resident: Callable[[Split], Batches],
        precision: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._config = config
        self._training_set = training_set
        self._probe_batch = train_batch_size
        self._precision = precision
        self._probe_indices = {
            "train": _probe(len(bundle.train), config.probe_samples, train_batch_size),
            "test": _probe(len(bundle.test), config.probe_samples, train_batch_size),
        }
        train_probe = bundle.train.take(self._probe_indices["train"])
        test_probe = bundle.test.take(self._probe_indices["test"])
        splits = {"train": train_probe, "valid": bundle.valid, "test": bundle.test}
        self._splits = {name: resident(split) for name, split in splits.items() if len(split)}
        self._probes = {"train": self._splits["train"], "test": resident(test_probe)}

    def evaluate(self, model: nn.Module) -> list[Measured]:
        """Measure the model and leave it as it was: modes, buffers and random state."""
        with self._precision():
            fresh = refreshed(model, self._training_set)
            with adopted(model, fresh):
                evaluated, figures = self._splits_of(model)
        # before its next step, a strategy that refreshes at every step would have these too
        current = {layer: found for layer, found in fresh.items() if layer.refresh_every == 1}
        with self._precision(), adopted(model, current), training_statistics(model):
            for split, batches in self._probes.items():
                trained, labels = logits_of(model, batches.sequential(self._probe_batch))
                difference = gap(trained, evaluated[split], labels)
                figures += [
                    Measured(split, "acc_gap", difference.acc_gap, difference.samples),
                    Measured(split, "loss_gap", difference.loss_gap, difference.samples),
                    Measured(split, "flip_rate", difference.flip_rate, difference.samples),
                ]
        return figures

    def _splits_of(self, model: nn.Module) -> tuple[dict[str, Tensor], list[Measured]]:
        """Return the logits on the probe samples, and loss and accuracy of each split."""
        evaluated: dict[str, Tensor] = {}
        figures: list[Measured] = []
        size = self._config.batch_size
        with adopted(model, self._of_training_set(model)):
            judged = folded(model) if self._config.stats == "folded" else model
            for split, batches in self._splits.items():
                with evaluating(judged), self._of_evaluated(model, batches):
                    logits, labels = logits_of(judged, batches.sequential(size))
                evaluated[split] = logits
                found = score(logits, labels)
                figures += [
                    Measured(split, "loss", found.loss, found.samples),
                    Measured(split, "accuracy", found.accuracy, found.samples),
                ]
            evaluated["test"] = evaluated["test"][self._probe_indices["test"].to(evaluated["test"].device)]
            if judged is not model:
                with evaluating(model):
                    unfolded, labels = logits_of(model, self._probes["test"].sequential(size))
                error = (evaluated["test"] - unfolded).abs().max() / unfolded.square().mean().sqrt()
                figures.append(Measured("test", "fold_error", error.item(), len(labels)))
        return evaluated, figures

    def _of_training_set(self, model: nn.Module) -> Statistics:
        """Return the statistics of the training set that evaluation was asked to use; none where it was not."""
        if self._config.stats == "precise":
            return precise(model, self._training_set.sequential(self._probe_batch))
        if self._config.stats == "population":
            return population(model, plan(model, dict.fromkeys(running_layers(model)), self._training_set))
        return {}

    def _of_evaluated(self, model: nn.Module, batches: Batches) -> AbstractContextManager[None]:
        """Return the context that puts in statistics of what is evaluated, where they were asked for."""
        if self._config.stats == "test":
            return adopted(model, population(model, plan(model, dict.fromkeys(running_layers(model)), batches)))
        if self._config.stats in ("batch", "mixed"):
            return mixed_with_batch(model, 0.0 if self._config.stats == "batch" else self._config.prior)
        return nullcontext()


def _probe(available: int, wanted: int, batch_size: int) -> Tensor:
    """Return fixed sample indices; whole training batches only, unless there is less than one."""
    count = min(available, wanted)
    count -= count % batch_size if count > batch_size else 0
    return torch.randperm(available, generator=generator(0, "probes"))[:count]


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
