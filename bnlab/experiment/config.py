"""The configuration of a run as one typed tree: every key known, of its type, in range, consistent with the rest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from bnlab import __version__
from bnlab.data.dataset import DataSpec, datasets
from bnlab.distributed import HOW_TO_START, Workers, from_environment
from bnlab.errors import ConfigError, IncompatibleError, did_you_mean
from bnlab.meters.meter import ALWAYS, meters
from bnlab.models.model import ModelSpec, models
from bnlab.norms.strategy import Strategy, strategies
from bnlab.registry import Named, Registry
from bnlab.schema import EVERY_KEY, parse
from bnlab.training.evaluation import EvalConfig
from bnlab.training.optim import OptimizerSpec, optimizers
from bnlab.training.schedule import ScheduleSpec, schedules
from bnlab.training.trainer import TrainerConfig

SHORT = {"cheap": ("gap",), "full": ("gap", "probe")}  # words for what is measured
T = TypeVar("T", bound=Named)
W = TypeVar("W", bound=str)
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,79}")
KEYS = (
    "name", "seed", "norm", "model", "data", "optim", "schedule", "trainer", "eval", "measure", "measure_every",
    "incompatible",
)  # fmt: skip
# Where things lie and what a run is called; they cannot change its result, so they are no part of its identity.
# Of several workers their number counts, not the switch.
PLACES = (
    ("name",), ("data", "root"), ("data", "path"), ("trainer", "distributed"), ("trainer", "timeout"), ("incompatible",)
)  # fmt: skip
RECORDED = "record"  # a run whose strategy does not fit its cell is refused, as its outcome


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str | None
    seed: int
    norm: Strategy
    model: ModelSpec
    data: DataSpec
    optim: OptimizerSpec
    schedule: ScheduleSpec
    trainer: TrainerConfig
    eval: EvalConfig
    measure: tuple[str, ...] = SHORT["cheap"]
    measure_every: int | None = None  # steps between readings of meters; None: at evaluations

    @property
    def in_full(self) -> bool:
        """Whether every evaluation takes the measurements of `bnlab probe`."""
        return "probe" in self.measure

    @property
    def meters(self) -> tuple[str, ...]:
        """The meters that are read."""
        return tuple(name for name in self.measure if name not in ALWAYS)

    def batch_of_statistics(self, workers: int) -> int:
        """Return how many samples the norm layers of one of so many workers have for their batch."""
        return self.data.batch_size // self.trainer.accumulate // (1 if self.norm.facts.spans_workers else workers)

    def micro_batch(self, workers: int) -> int | None:
        """Return how many samples go through the model of one of so many workers at a time; None: its whole part."""
        parts = self.trainer.accumulate * workers
        return self.data.batch_size // parts if self.trainer.accumulate > 1 else None


def parse_config(tree: Mapping[str, Any]) -> Config:
    """Return the configuration that `tree` spells out.

    Errors: ConfigError naming the key, the value and what is allowed.
    """
    for key in tree:
        if key not in KEYS:
            raise ConfigError(f"{key}: no such key{did_you_mean(str(key), KEYS)}\n{EVERY_KEY}")
    config = Config(
        name=_name(tree.get("name")),
        seed=_seed(tree.get("seed")),
        norm=_option(strategies, "norm", tree),
        model=_option(models, "model", tree),
        data=data_of(tree),
        optim=_option(optimizers, "optim", tree),
        schedule=_option(schedules, "schedule", tree),
        trainer=parse(TrainerConfig, _node("trainer", tree), "trainer"),
        eval=parse(EvalConfig, _node("eval", tree), "eval"),
        measure=_measure(tree.get("measure", "cheap")),  # older runs do not have the key
        measure_every=_measure_every(tree.get("measure_every")),
    )
    _one_of("incompatible", ("stop", RECORDED), tree.get("incompatible", "stop"))
    if config.data.batch_size % config.trainer.accumulate:
        raise ConfigError(
            f"trainer.accumulate={config.trainer.accumulate}: must divide data.batch_size={config.data.batch_size}\n"
            "all parts of a batch have to be of one size"
        )
    check_part(config)
    if config.eval.shifted != "none":
        from bnlab.data.shifts import severity_of  # with torchvision's transforms, which take time to import

        severity_of(config.eval.shifted)
    return config


def data_of(tree: Mapping[str, Any]) -> DataSpec:
    """Return the data set that `tree` spells out. Errors: ConfigError."""
    return _option(datasets, "data", tree)


def is_recorded(tree: object) -> bool:
    """Return whether it is a run's outcome, and no error, that its strategy does not fit: `incompatible=record`."""
    return isinstance(tree, Mapping) and tree.get("incompatible") == RECORDED


def check_workers(config: Config, workers: Workers) -> None:
    """Refuse a run that does not fit the processes that were started for it. Errors: ConfigError."""
    started = from_environment()
    if config.trainer.distributed and started is None:
        raise ConfigError(f"trainer.distributed=true: torchrun's environment is missing\n{HOW_TO_START}")
    if started is not None and started.size != workers.size:
        raise ConfigError("trainer.distributed=true: hydra/launcher must be basic, the workers run the jobs themselves")
    if workers.size == 1:
        return
    if config.meters:
        raise ConfigError(
            f"measure={config.meters[0]}: is read in one process, and this run has {workers.size}\n"
            "set measure=cheap, or train it without torchrun"
        )
    if not config.trainer.distributed:
        raise ConfigError(
            f"trainer.distributed=false: {workers.size} processes were started for one run\n"
            "set trainer.distributed=true, or start bnlab without torchrun"
        )
    if config.trainer.device.startswith("cuda:"):
        raise ConfigError(
            f"trainer.device={config.trainer.device}: {workers.size} workers cannot share it\n"
            "set trainer.device=cuda, then each takes the one of its local rank"
        )
    if config.trainer.accumulate > 1 and config.data.batch_size % (config.trainer.accumulate * workers.size):
        raise ConfigError(
            f"trainer.accumulate={config.trainer.accumulate}: must divide the part of each of {workers.size} workers\n"
            f"set data.batch_size to a multiple of {config.trainer.accumulate * workers.size}"
        )
    check_part(config, workers.size)


def check_part(config: Config, workers: int = 1) -> None:
    """Refuse a strategy that does not fit what one of so many workers normalizes at a time.

    Errors: IncompatibleError.
    """
    try:
        config.norm.check_batch(config.batch_of_statistics(workers))
    except IncompatibleError as error:
        whose = [f"of one of {workers} workers"] * (workers > 1 and not config.norm.facts.spans_workers)
        whose += [f"of trainer.accumulate={config.trainer.accumulate}"] * (config.trainer.accumulate > 1)
        if not whose:
            raise
        reason, _, advice = str(error).partition("\n")
        raise IncompatibleError(f"{reason}, the part {' and '.join(whose)}\n{advice}") from error


def identity(tree: Mapping[str, Any], data_fingerprint: str, workers: int = 1) -> str:
    """Return 16 hexadecimal digits that are equal for runs that must give equal results on one machine.

    Several workers add up in another order, and a strategy may take the statistics of each worker's own part.
    """
    rest = json.loads(json.dumps(tree))
    rest["measure"] = _shortest(_measure(rest.get("measure", "cheap")))
    if rest.get("measure_every") is None:
        rest.pop("measure_every", None)
    for *path, last in PLACES:
        node = rest
        for key in path:
            node = node[key]
        node.pop(last, None)
    content = json.dumps([rest, data_fingerprint, __version__, *([workers] if workers > 1 else [])], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _measure(value: Any) -> tuple[str, ...]:
    """Return what is measured, in the order of the meters; the gap always is. Errors: ConfigError."""
    known = (*ALWAYS, *meters)
    if isinstance(value, str) and value in SHORT:
        return SHORT[value]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names:
        raise ConfigError(f"measure={value}: must be cheap, full, or a list of {', '.join(known)}")
    for name in names:
        if name not in known:
            near = did_you_mean(str(name), [*known, *SHORT])
            raise ConfigError(f"measure={name}: must be cheap, full, or a list of {', '.join(known)}{near}")
    return tuple(name for name in known if name == "gap" or name in names)


def _shortest(measure: tuple[str, ...]) -> str | list[str]:
    """Return the one way to write it that identities are made of."""
    return next((word for word, names in SHORT.items() if names == measure), list(measure))


def _measure_every(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**63):
        return value
    raise ConfigError(f"measure_every={value}: must be a whole number of steps from 1 on, or null (at evaluations)")


def _node(key: str, tree: Mapping[str, Any]) -> Mapping[str, Any]:
    node = tree.get(key)
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key}={node}: must be a group of keys such as {key}.…")
    return node


def _option(registry: Registry[T], key: str, tree: Mapping[str, Any]) -> T:
    node = dict(_node(key, tree))
    name = node.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{key}.name={name}: must be one of {', '.join(registry)}")
    return parse(registry[name], node, key)


def _name(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not SAFE_NAME.fullmatch(value):
        meant = f"\nwrite \"name='{value}'\", as text" if SAFE_NAME.fullmatch(str(value)) else ""
        raise ConfigError(
            f"name={value!r}: must be up to 80 letters, digits and ._+=,- beginning with a letter or digit{meant}"
        )
    return value


def _one_of(key: str, known: tuple[W, ...], value: Any) -> W:
    for word in known:
        if value == word:
            return word
    raise ConfigError(f"{key}={value}: must be one of {', '.join(known)}{did_you_mean(str(value), known)}")


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        span = re.fullmatch(r"(\d{1,9})(?:\.\.|-|:)(\d{1,9})", str(value))
        meant = f"\nwrite seed=range({span[1]},{int(span[2]) + 1}) with -m" if span else ""
        raise ConfigError(f"seed={value}: must be a whole number from 0 to 2^63 - 1{meant}")
    return value
