"""What a command line asks to compare: sections of arms that differ in the strategy only, each with its baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from bnlab import hydra_app
from bnlab.bench.engine import BenchConfig, Contest, Stepper
from bnlab.bench.stepper import stepper
from bnlab.config import Config, parse_config
from bnlab.data import DataBundle
from bnlab.errors import ConfigError, MisfitError
from bnlab.models.base import check_fit
from bnlab.prepare import bundle_of, device_of, resident
from bnlab.schema import parse
from bnlab.training.allocator import keep_freed_memory

DEFAULT_NORMS = "norm=none,batch,ghost,instance,layer,group"
OWN = "bench."  # keys that are the bench's and no run's


@dataclass(frozen=True)
class Arm:
    """One configuration."""

    label: str  # `none`, `ghost size=16`
    config: Config
    tree: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """Arms that differ in the strategy only; the first is the baseline."""

    title: str  # what tells this section from the others, `model=mlp data.batch_size=16`; empty where there is one only
    arms: tuple[Arm, ...]
    images: DataBundle | None = None  # in place of the data set


def read(overrides: Sequence[str]) -> tuple[BenchConfig, list[Section], list[str]]:
    """Return when to stop, the sections, and a line for each combination that was left out as it does not fit.

    Errors: ConfigError for keys and values, and where nothing is left.
    """
    own = [line for line in overrides if line.startswith(OWN)]
    rest = [line for line in overrides if not line.startswith(OWN)]
    defaults = {"bench": asdict(BenchConfig())}
    keys = [f"bench.{field.name}" for field in fields(BenchConfig)]
    bench = parse(BenchConfig, hydra_app.adjusted(defaults, own, keys)["bench"], "bench")
    if not any(line.startswith("norm=") for line in rest):
        rest.append(DEFAULT_NORMS)
    found: dict[str, list[Arm]] = {}
    titles: dict[str, list[str]] = {}
    left_out = []
    jobs = hydra_app.planned(rest, multirun=True)
    shared = set.intersection(*(set(lines) for lines, _ in jobs))
    for lines, tree in jobs:
        changed = [line for line in lines if line not in shared]
        try:
            config = parse_config(tree)
            check_fit(config.model, config.norm)
        except MisfitError as error:
            left_out.append(f"left out: {' '.join(changed) or config_name(tree)}: {str(error).partition(chr(10))[0]}")
            continue
        key = json.dumps({k: v for k, v in tree.items() if k not in ("norm", "seed", "name")}, sort_keys=True)
        found.setdefault(key, []).append(Arm(_label(changed, tree), config, tree))
        titles.setdefault(key, [line for line in changed if not line.startswith(("norm=", "norm."))])
    if not found:
        raise ConfigError("nothing to measure: no strategy fits\n" + "\n".join(left_out[:2]))
    return bench, [Section(" ".join(titles[key]), _with_baseline(arms)) for key, arms in found.items()], left_out


def config_name(tree: Mapping[str, Any]) -> str:
    """Return the strategy of a configuration as written on a command line."""
    return f"norm={tree['norm']['name']}"


def _label(changed: Sequence[str], tree: Mapping[str, Any]) -> str:
    own = [line.removeprefix("norm.") for line in changed if line.startswith("norm.")]
    return " ".join([tree["norm"]["name"], *own])


def _with_baseline(arms: list[Arm]) -> tuple[Arm, ...]:
    """Put `none` first; where it is not among the arms, the first as named is the baseline."""
    return tuple(sorted(arms, key=lambda arm: arm.config.norm.name != "none"))


def contest(section: Section) -> Contest:
    """Return the contest of a section's training steps. Errors: as of reading its data and finding its device."""
    keep_freed_memory()
    config = section.arms[0].config
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = device_of(config.trainer.device)
    bundle = section.images or bundle_of(config.data)
    training_set = resident(config, bundle, bundle.train, device, training=True)
    threads = torch.get_num_threads()
    layout = "channels_last" if config.trainer.channels_last and config.model.has_space else "contiguous"
    setting = (
        config.data.name if section.images is None else "random images",
        f"{config.model.name}, batch {config.data.batch_size}",
        f"{device.type}, {threads} thread{'s' if threads > 1 else ''}",
        layout,
        *([config.trainer.precision] if config.trainer.precision != "float32" else []),
        *(["compiled"] if config.trainer.compile else []),
    )

    def make(config: Config) -> Callable[[], Stepper]:
        return lambda: stepper(config, bundle, training_set, device)

    steppers = {arm.label: make(arm.config) for arm in section.arms}
    return Contest(section.title, setting, config.data.batch_size, device, steppers)
