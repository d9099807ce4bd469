"""A trained model with the data it is examined on: of a run's checkpoint, or of a module of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnlab import hydra_app
from bnlab.compare.read import read_documents
from bnlab.config import Config, parse_config
from bnlab.conformance.subject import described, load_factory
from bnlab.data import Batches, DataBundle
from bnlab.errors import ConfigError, RecordError
from bnlab.measure.mates import Probe, probe_indices
from bnlab.models import norm_layers
from bnlab.prepare import bundle_of, device_of, model_of, placed, resident
from bnlab.training import checkpoint
from bnlab.training.allocator import keep_freed_memory
from bnlab.training.trainer import precision_of

# What of a run's configuration may be set anew to examine it: where things lie, how and on how much it is examined.
ADJUSTABLE = ("data.root", "data.path", "eval.batch_size", "eval.probe_samples", "eval.prior", "trainer.device",
              "trainer.threads")  # fmt: skip
_INSIDE = ("model", "state_dict", "model_state_dict")  # where files of training scripts keep the weights


@dataclass(frozen=True)
class Specimen:
    """A model with its weights, in evaluation mode on its device, and its data."""

    label: str
    model: nn.Module
    config: Config
    bundle: DataBundle
    device: torch.device
    batch_size: int  # samples that a training step takes its statistics from
    state: Mapping[str, Any] | None  # the checkpoint of a run; None: a module
    folder: Path | None  # of a run

    @property
    def precision(self) -> Callable[[], AbstractContextManager[object]]:
        """Return the context that the forward passes of training ran in."""
        return precision_of(self.config.trainer, self.device)

    @cached_property
    def train(self) -> Batches:
        """The training split, not augmented."""
        return resident(self.config, self.bundle, self.bundle.train, self.device, training=False)

    @cached_property
    def valid(self) -> Batches | None:
        """The validation split; None where the run has none."""
        split = self.bundle.valid
        return resident(self.config, self.bundle, split, self.device, training=False) if len(split) else None

    @cached_property
    def test(self) -> Batches:
        """The test split."""
        return resident(self.config, self.bundle, self.bundle.test, self.device, training=False)

    def probe(self, split: str, samples: int | None = None) -> Probe:
        """Return fixed samples of `train` or `test`, those that the run itself was probed on."""
        whole = {"train": self.bundle.train, "test": self.bundle.test}[split]
        chosen = whole.take(probe_indices(len(whole), samples or self.config.eval.probe_samples, self.batch_size))
        augments = self.config.data.augment.active
        return Probe(
            split,
            resident(self.config, self.bundle, chosen, self.device, training=False),
            resident(self.config, self.bundle, chosen, self.device, training=True) if augments else None,
            self.batch_size,
            chosen.labels.to(self.device),
        )


def find(targets: Sequence[str], module: str | None, weights: Path | None, data: str | None) -> Specimen:
    """Return what a command line names: `RUN [KEY=VALUE]...`, or overrides beside a module. Errors: as below."""
    if module is not None:
        return of_module(module, weights, [*([f"data={data}"] if data else []), *targets])
    if data is not None:
        raise ConfigError(f"--data {data}: goes with --module; a run has its data\nset data.root=... if it has moved")
    if not targets or ("=" in targets[0] and not Path(targets[0]).exists()):
        raise ConfigError("RUN is missing\nname a run folder, such as runs/…/0, or your own model by --module")
    return of_run(Path(targets[0]), weights, targets[1:])


def of_run(folder: Path, weights: Path | None = None, overrides: Sequence[str] = ()) -> Specimen:
    """Return the model of the run in `folder`, with the weights of its newest checkpoint or of the file `weights`.

    `overrides` may set what is in ADJUSTABLE. Errors: ConfigError, RecordError when there is no run or no checkpoint.
    """
    status, summary = read_documents(folder)
    tree = summary.get("config") or status.get("config")
    if not isinstance(tree, Mapping):
        raise RecordError(f"{folder}: holds no configuration of a run\nname a run folder, such as runs/…/0")
    config = parse_config(hydra_app.adjusted(tree, overrides, ADJUSTABLE))
    state = checkpoint.load(folder) if weights is None else checkpoint.load_file(weights)
    bundle, device = _settle(config)
    model = model_of(config, bundle)
    _fill(model, state.get("model", {}), str(weights or folder))
    specimen = Specimen(
        str(folder if weights is None else weights),
        placed(model, config, device).eval(),
        config,
        bundle,
        device,
        config.batch_of_statistics(_workers(summary)),
        state,
        folder,
    )
    total = config.trainer.total_steps(specimen.train.steps_per_epoch)
    for _, layer in norm_layers(model):
        layer.begin(total)
    return specimen


def of_module(factory: str, weights: Path | None, overrides: Sequence[str]) -> Specimen:
    """Return the model that `package.module:factory()` makes, with the state dict in `weights` if there is one.

    `overrides` are those of a run; of them `data`, `eval`, `trainer` and `model.input_norm` have a meaning.
    Errors: ConfigError.
    """
    make = load_factory(factory)
    try:
        model = make()
    except Exception as error:
        raise ConfigError(f"--module {factory}: called without arguments it fails: {described(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--module {factory}: must return a torch.nn.Module, not {type(model).__name__}")
    (tree,) = hydra_app.jobs(list(overrides), multirun=False)
    config = parse_config(tree)
    bundle, device = _settle(config)
    if weights is not None:
        state = checkpoint.load_file(weights)
        inner = next((state[key] for key in _INSIDE if isinstance(state.get(key), Mapping)), state)
        _fill(model, {str(key).removeprefix("module."): value for key, value in inner.items()}, str(weights))
    specimen = Specimen(
        factory if weights is None else f"{factory} with {weights}",
        placed(model, config, device).eval(),
        config,
        bundle,
        device,
        config.data.batch_size,
        None,
        None,
    )
    _try_out(factory, specimen)
    return specimen


def _settle(config: Config) -> tuple[DataBundle, torch.device]:
    keep_freed_memory()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    return bundle_of(config.data), device_of(config.trainer.device)


def _fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RecordError(f"{source}: does not fit the model: {' '.join(lines[1:2] or lines[:1])[:200]}") from error


def _workers(summary: Mapping[str, Any]) -> int:
    environment = summary.get("environment")
    workers = environment.get("workers", 1) if isinstance(environment, Mapping) else 1
    return workers if isinstance(workers, int) and workers > 0 else 1


def _try_out(factory: str, specimen: Specimen) -> None:
    """Refuse a model that cannot take the images, or gives no logits for their classes."""
    images, _ = next(specimen.test.sequential(2))
    try:
        with torch.no_grad():
            logits = specimen.model(images)
    except Exception as error:
        raise ConfigError(
            f"--module {factory}: fails on images of shape {tuple(images.shape)}: {described(error)}"
        ) from error
    classes = specimen.bundle.num_classes
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] < classes:
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"--module {factory}: must return logits of shape ({len(images)}, {classes} or more) for "
            f"{len(images)} images of {classes} classes, not {what}"
        )
