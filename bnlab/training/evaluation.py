"""What a run measures at every evaluation: each split in evaluation mode, and the gap to training mode on probes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnlab.data import Batches, DataBundle, Split
from bnlab.measure.discrepancy import evaluating, gap, logits_of, score, training_statistics
from bnlab.schema import param
from bnlab.seeding import generator


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """When and on what a run is evaluated."""

    every: float = param(1.0, "epochs between evaluations; a fraction is allowed", above=0.0)
    batch_size: int = param(200, "samples in a batch of an evaluation; figures do not depend on it", low=1)
    probe_samples: int = param(2048, "fixed training and test samples for the train-versus-eval gap", low=1)


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
        evaluated: dict[str, Tensor] = {}
        figures: list[Measured] = []
        with self._precision(), evaluating(model):
            for split, batches in self._splits.items():
                logits, labels = logits_of(model, batches.sequential(self._config.batch_size))
                evaluated[split] = logits
                found = score(logits, labels)
                figures += [
                    Measured(split, "loss", found.loss, found.samples),
                    Measured(split, "accuracy", found.accuracy, found.samples),
                ]
        evaluated["test"] = evaluated["test"][self._probe_indices["test"].to(evaluated["test"].device)]
        with self._precision(), training_statistics(model):
            for split, batches in self._probes.items():
                trained, labels = logits_of(model, batches.sequential(self._probe_batch))
                difference = gap(trained, evaluated[split], labels)
                figures += [
                    Measured(split, "acc_gap", difference.acc_gap, difference.samples),
                    Measured(split, "loss_gap", difference.loss_gap, difference.samples),
                    Measured(split, "flip_rate", difference.flip_rate, difference.samples),
                ]
        return figures


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
