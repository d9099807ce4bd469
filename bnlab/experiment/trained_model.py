"""A trained model with the data it is examined on: of a run's checkpoint, or of a module of the user's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.nn.parameter import is_lazy

from bnlab.config import compose
from bnlab.conformance.subject import described, load_factory
from bnlab.data.batches import Batches
from bnlab.data.bundle import DataBundle
from bnlab.errors import BnlabError, ConfigError, RecordError
from bnlab.experiment.config import Config, parse_config
from bnlab.experiment.setup import bundle_of, device_batches, device_of, model_of, to_device
from bnlab.measure.probe_batches import Probe, probe_indices
from bnlab.models.model import norm_layers
from bnlab.record.origin import check_places
from bnlab.record.read import read_documents
from bnlab.training import checkpoint
from bnlab.training.allocator import keep_freed_memory
from bnlab.training.trainer import precision_of

# What of a run's configuration may be set anew to examine it: where things lie, how and on how much it is examined.
ADJUSTABLE = ("data.root", "data.path", "eval.batch_size", "eval.probe_samples", "eval.prior", "trainer.device",
              "trainer.threads")  # fmt: skip
MODULE_KEYS = ("data", "eval", "trainer", "seed", "model.input_norm")  # what has a meaning for a module of the user's
INSIDE = ("model", "state_dict", "model_state_dict")  # where files of training scripts keep the weights
NAMED = 3  # keys that a message names, then a count


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights, in evaluation mode on its device, and its data."""

    label: str
    model: nn.Module
    config: Config
    bundle: DataBundle
    device: torch.device
    batch_size: int  # samples that a training step takes its statistics from
    state: Mapping[str, Any] | None  # the checkpoint of a run; None: a module
    folder: Path | None  # of a run
    is_untrained: bool = False  # a module without weights of its own

    @property
    def about(self) -> tuple[str, ...]:
        """What it is, as on a command line: data, strategy and model; of a module its class, images and weights."""
        config, data = self.config, f"data={self.config.data.name}"
        if self.folder is not None:
            return (data, f"norm={config.norm.name}", f"model={config.model.name}")
        images = "images in [0, 1]" if config.model.input_norm == "none" else "images standardized"
        return (data, type(self.model).__name__, images, *(["weights as the factory makes them"] * self.is_untrained))

    @property
    def step(self) -> int | None:
        """The training step that a run's checkpoint is of."""
        step = (self.state or {}).get("step")
        return step if isinstance(step, int) else None

    @contextmanager
    def examined(self) -> Iterator[None]:
        """Let forward passes run as those of training did; what a user's own module raises becomes a ConfigError."""
        try:
            with precision_of(self.config.trainer, self.device)():
                yield
        except BnlabError:
            raise
        except Exception as error:
            if self.folder is not None:
                raise
            raise ConfigError(
                f"--module {self.label}: fails in training mode or in batches of another size: {described(error)}"
            ) from error

    @cached_property
    def train(self) -> Batches:
        """The training split, not augmented."""
        return device_batches(self.config, self.bundle, self.bundle.train, self.device, training=False)

    @cached_property
    def valid(self) -> Batches | None:
        """The validation split; None where the run has none."""
        split = self.bundle.valid
        return device_batches(self.config, self.bundle, split, self.device, training=False) if len(split) else None

    @cached_property
    def test(self) -> Batches:
        """The test split."""
        return device_batches(self.config, self.bundle, self.bundle.test, self.device, training=False)

    def probe(self, split: str, samples: int | None = None) -> Probe:
        """Return fixed samples of `train` or `test`, those that the run itself was probed on."""
        whole = {"train": self.bundle.train, "test": self.bundle.test}[split]
        chosen = whole.take(probe_indices(len(whole), samples or self.config.eval.probe_samples, self.batch_size))
        augments = self.config.data.augment.active
        return Probe(
            split,
            device_batches(self.config, self.bundle, chosen, self.device, training=False),
            device_batches(self.config, self.bundle, chosen, self.device, training=True) if augments else None,
            self.batch_size,
            chosen.labels.to(self.device),
        )


def find(targets: Sequence[str], module: str | None, weights: Path | None, data: str | None) -> TrainedModel:
    """Return what a command line names: `RUN [KEY=VALUE]...`, or overrides beside a module. Errors: as below."""
    if module is not None:
        return of_module(module, weights, [*([f"data={data}"] if data else []), *targets])
    if data is not None:
        raise ConfigError(f"--data {data}: only with --module; a run knows its data\nset data.root=... if it has moved")
    if not targets or ("=" in targets[0] and not Path(targets[0]).exists()):
        raise ConfigError("RUN is missing\nname a run folder, such as runs/…/0, or your own model by --module")
    for other in targets[1:]:
        if "=" not in other:
            raise ConfigError(
                f"{other}: only overrides can follow RUN, such as data.root=...; one run is examined at a time"
            )
    return of_run(Path(targets[0]), weights, targets[1:])


def of_run(folder: Path, weights: Path | None = None, overrides: Sequence[str] = ()) -> TrainedModel:
    """Return the model of the run in `folder`, with the weights of its newest checkpoint or of the file `weights`.

    `overrides` may set what is in ADJUSTABLE. Errors: ConfigError, RecordError when there is no run or no checkpoint.
    """
    status, summary = read_documents(folder)
    tree = summary.get("config") or status.get("config")
    if not isinstance(tree, Mapping):
        raise RecordError(f"{folder}: holds no configuration of a run\nname a run folder, such as runs/…/0")
    tree = compose.adjusted(tree, overrides, ADJUSTABLE)
    check_places(folder, tree, status.get("origin"), overrides)
    config = parse_config(tree)
    state = checkpoint.load(folder) if weights is None else checkpoint.load_file(weights)
    bundle, device = _bundle_and_device(config)
    model = model_of(config, bundle)
    _load_weights(model, state, str(weights or folder))
    trained = TrainedModel(
        str(folder if weights is None else weights),
        to_device(model, config, device).eval(),
        config,
        bundle,
        device,
        config.batch_of_statistics(_workers(summary)),
        state,
        folder,
    )
    if "recalibrated" in state:  # the counts began anew, and schedules are told from them: they stay at their end
        return trained
    total = config.trainer.total_steps(trained.train.steps_per_epoch)
    for _, layer in norm_layers(model):
        layer.begin(total)
    return trained


def of_module(factory: str, weights: Path | None, overrides: Sequence[str]) -> TrainedModel:
    """Return the model that `package.module:factory()` makes, with the state dict in `weights` if there is one.

    `overrides` name the data and may set what is in MODULE_KEYS. `model.input_norm=none` gives raw images in [0, 1],
    `standardize`, the default, those less the mean over the standard deviation of the training split; augmentation and
    `data.batch_size` should be those of the model's training. Without weights, those that the factory draws from the
    seed are taken. Errors: ConfigError, RecordError.
    """
    config = _module_config(factory, overrides)
    torch.manual_seed(config.seed)
    make = load_factory(factory)
    try:
        model = make()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"--module {factory}: called without arguments it fails: {described(error)}\n"
            "name a function or a class that takes none and returns the model"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"--module {factory}: must return a torch.nn.Module, not {type(model).__name__}\n"
            "give a function or a class that takes no arguments"
        )
    if weights is not None:
        _load_weights(model, checkpoint.load_file(weights), str(weights))
    bundle, device = _bundle_and_device(config)
    trained = TrainedModel(
        factory if weights is None else f"{factory} with {weights}",
        to_device(model, config, device).eval(),
        config,
        bundle,
        device,
        config.data.batch_size,
        None,
        None,
        weights is None,
    )
    _check_logits(factory, trained)
    return trained


def _module_config(factory: str, overrides: Sequence[str]) -> Config:
    """Return the configuration that `overrides` come to; refuse those that would set what the module itself settles."""
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if "=" not in override:
            raise ConfigError(f"{override}: with --module only overrides are allowed, such as data.root=...")
        if not any(key == known or key.startswith(f"{known}.") for known in MODULE_KEYS):
            raise ConfigError(f"{override}: cannot be set with --module\nthese can: {', '.join(MODULE_KEYS)}")
    if "data" not in keys:
        raise ConfigError(
            f"--module {factory}: needs data\nname a data set: --data mnist, or --data folder data.path=…"
        )
    # In the usual memory layout: what flattens by `view`, as many models do, cannot take the other.
    (tree,) = compose.jobs(["trainer.channels_last=false", *overrides], multirun=False)
    config = parse_config(tree)
    if config.model.input_norm == "batch":
        raise ConfigError("model.input_norm=batch: cannot be set with --module\nset none or standardize")
    return config


def _bundle_and_device(config: Config) -> tuple[DataBundle, torch.device]:
    keep_freed_memory()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    return bundle_of(config.data), device_of(config.trainer.device)


def _load_weights(model: nn.Module, loaded: Mapping[str, Any], source: str) -> None:
    """Put the weights that a file holds into `model`. Errors: RecordError naming what does not fit."""
    inner = next((loaded[key] for key in INSIDE if isinstance(loaded.get(key), Mapping)), loaded)
    known = model.state_dict()
    if not all(isinstance(name, str) for name in inner):
        raise RecordError(f"{source}: holds no state dict\nsave model.state_dict()")
    weights = _without_wrapper(inner, known)
    problems = _mismatches(weights, known)
    if not problems:
        try:
            model.load_state_dict(weights)
        except (RuntimeError, TypeError) as error:  # of a module that loads in a way of its own
            problems = [" ".join(line.strip() for line in str(error).splitlines()[:2])]
    if problems:
        raise RecordError(
            f"{source}: does not fit the model: {'; '.join(problems)}\n"
            "make the model as in training, and save model.state_dict()"
        )


def _without_wrapper(weights: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the weights by the model's own names, where all of them stand below a wrapper such as DataParallel."""
    names = copy.copy(weights)  # with what torch keeps beside the tensors
    while names and not known.keys() & names.keys():
        prefix = next(iter(names)).partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in names):
            return weights
        consume_prefix_in_state_dict_if_present(cast(dict[str, Any], names), prefix)
    return names


def _mismatches(weights: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Say which names are missing, unknown, or hold another shape; counts of batches may be missing (torch < 0.4.1)."""
    missing = [name for name in known if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in known]
    shapes = [
        f"{name} is {tuple(value.shape)} in the file, {tuple(known[name].shape)} in the model"
        for name, value in weights.items()
        if isinstance(value, Tensor) and _has_shape(known.get(name)) and value.shape != known[name].shape
    ]
    kinds = [("lacks", missing), ("also has", unknown), ("", shapes)]
    return [
        f"{what} {', '.join(names[:NAMED])}{f', … ({len(names):,} in all)' if len(names) > NAMED else ''}".lstrip()
        for what, names in kinds
        if names
    ]


def _has_shape(value: object) -> bool:
    return isinstance(value, Tensor) and not is_lazy(value)


def _workers(summary: Mapping[str, Any]) -> int:
    environment = summary.get("environment")
    workers = environment.get("workers", 1) if isinstance(environment, Mapping) else 1
    return workers if isinstance(workers, int) and workers > 0 else 1


def _check_logits(factory: str, trained: TrainedModel) -> None:
    """Refuse a model that cannot take the images, or gives no logits for their classes."""
    images, _ = next(trained.test.sequential(2))
    shape, classes = tuple(images.shape), trained.bundle.num_classes
    try:
        with torch.no_grad(), precision_of(trained.config.trainer, trained.device)():
            logits = trained.model(images)
    except Exception as error:
        raise ConfigError(
            f"--module {factory}: fails on images of shape {shape} (N, C, H, W): {described(error)}\n"
            "let the factory adapt the model to them; of data=folder, data.channels and data.size can be set"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] < classes:
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"--module {factory}: must return logits of shape ({len(images)}, {classes} or more) for "
            f"{len(images)} images of {classes} classes, not {what}\n"
            "let the factory wrap the model in a module that returns its logits alone"
        )
