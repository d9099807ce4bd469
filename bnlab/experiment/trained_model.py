"""A trained model with the data it is examined on: of a run's checkpoint, or of a module of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnlab.config import compose
from bnlab.data.batches import Batches
from bnlab.data.bundle import DataBundle
from bnlab.errors import ConfigError, IncompatibleError
from bnlab.experiment.config import Config, parse_config
from bnlab.experiment.setup import bundle_of, device_batches, device_of, model_of, to_device
from bnlab.experiment.target import check_target, keys_of_module, recorded
from bnlab.experiment.user_module import UserModule, called
from bnlab.experiment.weights import Place, load_weights
from bnlab.measure.input_scale import other_scale
from bnlab.measure.probe_batches import Probe, probe_indices
from bnlab.models.model import norm_layers
from bnlab.training import checkpoint
from bnlab.training.allocator import keep_freed_memory
from bnlab.training.trainer import precision_of

LOOKED = 64  # images that a module is tried on
SCALE_IMAGES = 256  # that tell in which scale a model was given its images


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
    place: Place  # of its weights in their file; of a module without one, its names in its own state dict
    module: UserModule | None = None
    is_untrained: bool = False  # a module without weights of its own
    is_scale_given: bool = False  # of a module's images, by whoever names them

    @property
    def about(self) -> tuple[str, ...]:
        """What it is, as on a command line: data, strategy and model; of a module its class, images and weights."""
        config, data = self.config, f"data={self.config.data.name}"
        if self.folder is not None:
            return (data, f"norm={config.norm.name}", f"model={config.model.name}")
        images = "images in [0, 1]" if config.model.input_norm == "none" else "images standardized"
        said = ["weights as the factory makes them"] if self.is_untrained else self.place.about
        found = [self.bundle.counts] if self.bundle.about else []  # in a folder of the user's own
        return (data, type(self.model).__name__, *found, images, *said, *(self.module.about if self.module else ()))

    @property
    def step(self) -> int | None:
        """The training step that a run's checkpoint is of."""
        step = (self.state or {}).get("step")
        return step if isinstance(step, int) else None

    @property
    def unread(self) -> str:
        """The layers of a module that keep something in training that bnlab does not read, in words."""
        return self.module.unread if self.module else ""

    @contextmanager
    def examined(self) -> Iterator[None]:
        """Let forward passes run as those of training did; what a user's own module raises becomes a ConfigError."""
        with self.module.examined() if self.module else nullcontext(), precision_of(self.config.trainer, self.device)():
            try:
                yield
            except IncompatibleError as error:  # with what may be the reason
                unseen = self.module.unseen if self.module else []
                raise IncompatibleError("\n".join([str(error), *unseen])) from error

    @cached_property
    def train(self) -> Batches:
        """The training split; in stored order it comes plain, or augmented on request."""
        return device_batches(self.config, self.bundle, self.bundle.train, self.device, training=True)

    @cached_property
    def valid(self) -> Batches | None:
        """The validation split; None where the run has none."""
        split = self.bundle.valid
        return device_batches(self.config, self.bundle, split, self.device, training=False) if len(split) else None

    @cached_property
    def test(self) -> Batches:
        """The test split."""
        return device_batches(self.config, self.bundle, self.bundle.test, self.device, training=False)

    def other_scale(self) -> str:
        """Return what to say where a module's statistics are of images in another scale; a run's are of these."""
        if self.module is None:
            return ""
        images, _ = next(self.train.sequential(SCALE_IMAGES))
        mean, std = (moment.view(-1, 1, 1).to(self.device) for moment in (self.bundle.mean, self.bundle.std))
        if self.config.model.input_norm == "none":
            return other_scale(self.model, images, "in [0, 1]", mean, std)
        return other_scale(self.model, images * std + mean, "standardized", mean, std)

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


def find(
    targets: Sequence[str],
    module: str | None,
    weights: Path | None,
    data: str | None,
    key: str | None = None,
    output: str | None = None,
    command: str = "",
) -> TrainedModel:
    """Return what a command line names: `RUN [KEY=VALUE]...`, or overrides beside a module. Errors: as below."""
    check_target(targets, module, weights, data, key, output, command)
    if module is not None:
        return of_module(module, weights, [*([f"data={data}"] if data else []), *targets], key, output)
    return of_run(Path(targets[0]), weights, targets[1:], key)


def of_run(
    folder: Path, weights: Path | None = None, overrides: Sequence[str] = (), key: str | None = None
) -> TrainedModel:
    """Return the model of the run in `folder`, with the weights of its newest checkpoint or of the file `weights`.

    `overrides` may set what is in ADJUSTABLE. Errors: ConfigError, RecordError when there is no run or no checkpoint.
    """
    tree, summary = recorded(folder, overrides)
    config = parse_config(tree)
    state = checkpoint.load(folder) if weights is None else checkpoint.load_file(weights)
    bundle, device = _bundle_and_device(config)
    model = model_of(config, bundle)
    place = load_weights(model, state, str(weights or folder), key)
    trained = TrainedModel(
        str(folder if weights is None else weights),
        to_device(model, config, device).eval(),
        config,
        bundle,
        device,
        config.batch_of_statistics(num_workers(summary)),
        state,
        folder,
        place,
    )
    if "recalibrated" in state:  # the counts began anew, and schedules are told from them: they stay at their end
        return trained
    total = config.trainer.total_steps(trained.train.steps_per_epoch)
    for _, layer in norm_layers(model):
        layer.begin(total * config.trainer.accumulate)
    return trained


def of_module(
    source: str | nn.Module,
    weights: Path | None,
    overrides: Sequence[str],
    key: str | None = None,
    output: str | None = None,
) -> TrainedModel:
    """Return the model that `package.module:factory()` makes, or a copy of a module; with the weights if there are any.

    `weights` is a file with a state dict, `key` says where in it that stands, `output` which of several tensors that
    the model returns are its logits. `overrides` name the data and may set what is in MODULE_KEYS:
    `model.input_norm=none` gives raw images in [0, 1], `standardize`, the default, those less the mean over the
    standard deviation of the training split; augmentation and `data.batch_size` should be those of the model's
    training. A factory's weights are those that it draws from the seed. Errors: ConfigError, RecordError; as of
    `own_code`.
    """
    config = _module_config(source, overrides)
    torch.manual_seed(config.seed)
    module = UserModule(source, output)
    place = Place(names=module.names)
    if weights is not None:
        place = load_weights(module.model, checkpoint.load_file(weights), str(weights), key)
    bundle, device = _bundle_and_device(config)
    label = source if isinstance(source, str) else type(source).__name__
    to_device(module.model, config, device).eval()  # some return None
    trained = TrainedModel(
        label if weights is None else f"{label} with {weights}",
        module.model,
        config,
        bundle,
        device,
        config.data.batch_size // config.trainer.accumulate,
        None,
        None,
        place,
        module,
        isinstance(source, str) and weights is None,
        "model.input_norm" in keys_of_module(overrides),
    )
    with trained.examined():
        module.ready_for(next(trained.test.sequential(LOOKED))[0], bundle.num_classes)
    return trained


def _module_config(source: str | nn.Module, overrides: Sequence[str]) -> Config:
    """Return the configuration that `overrides` come to; refuse those that would set what the module itself settles."""
    keys = keys_of_module(overrides)
    if "data" not in keys:
        raise ConfigError(f"{called(source)}: needs data\nname a data set: data=mnist, or data=folder data.path=…")
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


def num_workers(summary: Mapping[str, Any]) -> int:
    """Return how many processes shared a training."""
    environment = summary.get("environment")
    workers = environment.get("workers", 1) if isinstance(environment, Mapping) else 1
    return workers if isinstance(workers, int) and workers > 0 else 1
