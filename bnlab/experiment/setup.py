"""What a run is made of before its first step: device, data set, model and batches, all from its configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.data.batches import Batches
from bnlab.data.bundle import DataBundle, Split, load
from bnlab.data.dataset import DataSpec
from bnlab.distributed import ALONE, Workers
from bnlab.errors import ConfigError, EnvironmentFault, IncompatibleError
from bnlab.experiment import gpu_lock
from bnlab.experiment.config import Config
from bnlab.models.model import build, num_weights
from bnlab.record.environment import environment
from bnlab.training.callbacks import Callback
from bnlab.training.job import Job, Stop

log = logging.getLogger("bnlab")
_bundles: dict[DataSpec, DataBundle] = {}


def device_of(name: str, workers: Workers = ALONE) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` (of several workers: that of the local rank) or `cuda:N` means."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not count:
            raise EnvironmentFault(f"trainer.device={name}: no CUDA device here\ntry trainer.device=cpu")
        if device.index is not None and device.index >= count:
            raise EnvironmentFault(f"trainer.device={name}: there are {count} CUDA devices, counted from 0")
        if workers.local_size > count:
            raise EnvironmentFault(f"{workers.local_size} workers, but {count} CUDA devices\ntry trainer.device=cpu")
        device = torch.device("cuda", device.index or workers.local_rank)
    return device


@contextmanager
def device_held(name: str, workers: Workers, stop: Stop, job: Job, callback: Callback) -> Iterator[torch.device]:
    """Hold the device of a training: a CUDA device is one job's at a time, and a job waits until one is free.

    `auto` and `cuda` take any that is free, `cuda:N` waits for that one. Several workers of one training claim nothing:
    each has that of its local rank. That `job` waits is told `callback` once; a request to `stop` ends that.
    Raises KeyboardInterrupt then. Errors: EnvironmentFault.
    """
    device = device_of(name, workers)
    if device.type != "cuda" or workers.size > 1:
        yield device
        return
    last = torch.cuda.current_device()  # of the job before: what CUDA needs in its memory for a process is there
    one = name not in ("auto", "cuda")
    numbers = [device.index] if one else sorted(range(torch.cuda.device_count()), key=lambda number: number != last)

    def waiting() -> None:
        taken = f"cuda:{numbers[0]} is" if len(numbers) == 1 else f"all {len(numbers)} CUDA devices are"
        callback.waits(f"{job.label or job.folder}: {taken} in use by other jobs; waiting")
        log.info("waiting: %s in use by other jobs", taken)

    names = [gpu_name(number) for number in numbers]
    with gpu_lock.claimed(names, gpu_lock.lock_folder(), stop, waiting) as place:
        device = torch.device("cuda", numbers[place])
        torch.cuda.set_device(device)
        try:
            yield device
        finally:
            torch.cuda.synchronize(device)  # raises where the device is lost: this process is of no use for more jobs
            torch.cuda.empty_cache()  # for the next process to hold it


def gpu_name(number: int) -> str:
    """Return what a CUDA device is called in every process: its UUID."""
    return str(torch.cuda.get_device_properties(number).uuid)


def bundle_of(spec: DataSpec) -> DataBundle:
    """Return the data set, read once a process."""
    source = replace(spec, batch_size=1, last_batch="keep", storage="uint8", shift=0, crop=0, flip=False)
    if source not in _bundles:
        _bundles[source] = load(source)
    return _bundles[source]


def check_memory(config: Config, bundle: DataBundle) -> None:
    """Refuse a model whose weights and gradients, and a draw of them, are more than this machine's memory.

    Errors: ConfigError.
    """
    count = num_weights(config.model, config.norm, bundle.image_shape, bundle.num_classes)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 3 * 4 * count > there:
        keys = " and ".join(f"model.{key}" for key in ("widths", "width", "depth") if hasattr(config.model, key))
        raise ConfigError(
            f"model={config.model.name}: {count:,} weights need {3 * 4 * count / 2**30:,.0f} GiB to be trained, "
            f"and there are {there / 2**30:,.0f}\nmake it smaller by {keys}"
        )


def model_of(config: Config, bundle: DataBundle, workers: Workers = ALONE) -> nn.Module:
    """Return the initialized model, on the CPU."""
    facts = config.norm.facts
    used = config.norm.samples_read(config.batch_of_statistics(workers.size))
    single = not config.model.norms_see_pixels or config.norm.per_activation
    if used == 1 and facts.needs_batch and single:
        parts = config.trainer.accumulate
        cut = f"trainer.accumulate={parts}, " if parts > 1 else ""
        raise IncompatibleError(
            f"{cut}data.batch_size={config.data.batch_size}: norm={config.norm.name} has one value a channel in "
            f"model={config.model.name}\n"
            "take its statistics from more samples, or a strategy that works sample by sample, such as norm=layer"
        )
    model = build(config.model, config.norm, bundle.image_shape, bundle.num_classes, config.seed)
    mean, std = (moment.view(-1, 1, 1) for moment in _input_moments(config, bundle))
    config.model.begin(model, lambda count: (bundle.train.images[:count] / 255 - mean) / std)
    return model


def _input_moments(config: Config, bundle: DataBundle) -> tuple[Tensor, Tensor]:
    """Return the (mean, deviation), shape (C,) each, that pixels in [0, 1] are standardized with."""
    if config.model.input_norm == "standardize":
        return bundle.mean, bundle.std
    return torch.zeros_like(bundle.mean), torch.full_like(bundle.std, 1 / config.model.input_scale)


def environment_of(device: torch.device, bundle: DataBundle, workers: int) -> dict[str, Any]:
    """Return where and on what a run goes: versions, processor, device, threads, workers, and of the data its mark.

    Of a user's own images also how many are used and passed over, and what is odd about them.
    """
    where = environment() | {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "workers": workers,
        "data_fingerprint": bundle.fingerprint,
    }
    return where | ({"data": dict(bundle.about)} if bundle.about else {})


def to_device(model: nn.Module, config: Config, device: torch.device) -> nn.Module:
    """Return the model on its device, in the memory layout of its images."""
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if _channels_last(config) else model


def _channels_last(config: Config) -> bool:
    """Return whether images are laid out channels last; a model without H x W would only have to copy them back."""
    return config.trainer.channels_last and config.model.has_space


def device_batches(
    config: Config,
    bundle: DataBundle,
    split: Split,
    device: torch.device,
    *,
    training: bool,
    workers: Workers = ALONE,
) -> Batches:
    """Return `split` on the device, as the model takes it; for training augmented and shared among the workers."""
    mean, std = _input_moments(config, bundle)
    return Batches(
        split,
        batch_size=config.data.batch_size,
        last_batch=config.data.last_batch if training else "keep",
        seed=config.seed,
        device=device,
        channels_last=_channels_last(config),
        mean=mean,
        std=std,
        storage=config.data.storage,
        augment=config.data.augment if training else None,
        rank=workers.rank if training else 0,
        size=workers.size if training else 1,
    )
