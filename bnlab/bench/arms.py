"""What a command line asks to compare: sections of arms that differ in the strategy only, each with its baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from bnlab.bench.engine import BenchConfig, Contest, Stepper
from bnlab.bench.stepper import Batch, first_batches, setting_of, stepper, where
from bnlab.config import compose
from bnlab.data.batches import Batches
from bnlab.data.bundle import DataBundle
from bnlab.errors import ConfigError, IncompatibleError
from bnlab.experiment.config import Config, parse_config
from bnlab.experiment.setup import bundle_of, device_batches, device_of, model_of
from bnlab.models.model import check_fit
from bnlab.schema import parse
from bnlab.training.allocator import keep_freed_memory
from bnlab.training.evaluation import check_eval
from bnlab.training.trainer import TrainerConfig

DEFAULT_NORMS = "norm=none,batch,ghost,instance,layer,group"
DEFAULT_LAYERS = "norm=batch,ghost,instance,layer,group"
OWN = "bench."  # keys that are the bench's and no run's
_THREADS = torch.get_num_threads()  # where trainer.threads leaves them to torch


@dataclass(frozen=True)
class BenchArm:
    """One configuration."""

    label: str  # `none`, `ghost size=16`; no two of a section have the same
    config: Config
    tree: Mapping[str, Any]


@dataclass(frozen=True)
class BenchSection:
    """Arms that differ in the strategy only; the first is the baseline."""

    title: str  # what tells this section from the others, `model=mlp data.batch_size=16`; empty where there is one only
    arms: tuple[BenchArm, ...]
    images: DataBundle | None = None  # in place of the data set
    left_out: tuple[str, ...] = ()  # a sentence for each arm that other sections have and that does not fit here


@dataclass
class _Draft:
    """A section while its arms are gathered."""

    title: str
    lines: list[str]  # overrides of its first arm
    configs: list[tuple[Config, dict[str, Any]]] = field(default_factory=list)


def read(overrides: Sequence[str], layers: bool = False) -> tuple[BenchConfig, list[BenchSection], list[str]]:
    """Return when to stop, the sections, and a line for each arm that was left out or added.

    A key of a strategy, `norm.size=8,16`, is for those of the strategies that have it. `layers`: normalization layers
    alone, of which `none` is no baseline. Errors: ConfigError for keys and values, and where nothing is left; as of
    reading the data.
    """
    bench = limits_of(overrides)
    infers = bench.mode == "inference"
    rest = [line for line in overrides if not line.startswith(OWN)]
    if not any(line.startswith("norm=") for line in rest):
        rest.append(DEFAULT_LAYERS if layers else DEFAULT_NORMS)
    drafts: dict[str, _Draft] = {}
    notes: list[str] = []
    alike: dict[str, None] = {}
    jobs = compose.planned(rest, multirun=True)
    shared = set.intersection(*(set(lines) for lines, _ in jobs))
    for lines, tree in jobs:
        changed = [line for line in lines if line not in shared]
        name = " ".join(changed) or f"norm={tree['norm']['name']}"
        try:
            config = parse_config(tree)
            if bench.graph and infers:
                raise ConfigError("bench.graph=true: cannot be combined with bench.mode=inference\nomit one of the two")
            if bench.graph and device_of(config.trainer.device).type != "cuda":
                raise ConfigError("bench.graph=true: graphs exist on CUDA only\nomit it")
            if infers and config.eval.stats != "running":
                if not config.norm.facts.keeps_stats:
                    alike[config.norm.name] = None
                    continue
                _check_way(config)
            check(config, bundle_of(config.data))
        except IncompatibleError as error:
            notes.append(left_out(name, error))
            continue
        aside = ("norm=", "norm.", "seed=", "name=", *(["eval.stats="] if infers else []))
        title = " ".join(line for line in changed if not line.startswith(aside))
        others = {**tree, "eval": {**tree["eval"], "stats": ""}} if infers else tree
        draft = drafts.setdefault(_without(others, "norm"), _Draft(title, lines))
        if any(_without(tree) == _without(other) for _, other in draft.configs):
            notes.append(f"left out: {name}: a bench has one seed, and this differs from another arm in no more")
        else:
            draft.configs.append((config, tree))
    if not drafts:
        raise ConfigError("nothing to measure: no strategy fits\n" + "\n".join(notes[:2]))
    if not layers:
        alone = [title for title, draft in drafts.items() if _only_none(draft)]
        if len(alone) == len(drafts):
            raise ConfigError("norm=none: there is nothing to compare it with\nname others, such as norm=none,batch")
        for draft in map(drafts.pop, alone):
            notes.append(f"left out: {draft.title}: only norm=none fits, and there is nothing to compare it with")
        notes += [note for draft in drafts.values() for note in _given_a_baseline(draft)]
    if alike:
        notes.append(f"no statistics are kept by norm={','.join(alike)}, so there is one way to evaluate")
    return bench, [BenchSection(draft.title, _labelled(draft.configs)) for draft in drafts.values()], notes


def limits_of(overrides: Sequence[str]) -> BenchConfig:
    """Return what `overrides` say of the bench itself. Errors: ConfigError."""
    own = [line for line in overrides if line.startswith(OWN)]
    defaults = {"bench": asdict(BenchConfig())}
    keys = [f"bench.{field.name}" for field in fields(BenchConfig)]
    return parse(BenchConfig, compose.adjusted(defaults, own, keys)["bench"], "bench")


def check(config: Config, bundle: DataBundle) -> None:
    """Refuse a strategy that does not fit its model, its batch or the images. Errors: IncompatibleError."""
    check_fit(config.model, config.norm)
    model_of(config, bundle)


def _check_way(config: Config) -> None:
    """Refuse what takes the time of another way of evaluation, and what cannot be folded.

    Errors: ConfigError, IncompatibleError.
    """
    if config.eval.stats not in ("batch", "folded"):
        raise ConfigError(
            f"eval.stats={config.eval.stats}: takes the time of another\nname some of running, batch, folded"
        )
    check_eval(model_of(config, bundle_of(config.data)), config.eval)


def left_out(name: str, error: IncompatibleError) -> str:
    """Return a line that names an arm and says what does not fit, without the way out."""
    reason = str(error).partition("\n")[0]
    return f"left out: {name}: {reason.removeprefix(f'{name}: ').removeprefix(f'norm={name}: ')}"


def _without(tree: Mapping[str, Any], *keys: str) -> str:
    return json.dumps({key: value for key, value in tree.items() if key not in ("seed", "name", *keys)}, sort_keys=True)


def _only_none(draft: _Draft) -> bool:
    return [config.norm.name for config, _ in draft.configs] == ["none"]


def _given_a_baseline(draft: _Draft) -> Iterator[str]:
    """Put `none` beside a single arm, and say so."""
    if len(draft.configs) > 1:
        return
    ((_, tree),) = draft.configs
    name = tree["norm"]["name"]
    lines = [line for line in draft.lines if not line.lstrip("+~").startswith(("norm=", "norm."))]
    ((_, base),) = compose.planned([*lines, "norm=none"], multirun=True)
    draft.configs.append((parse_config(base), base))
    yield f"norm={name} alone has nothing to be compared with: norm=none is added as its baseline"


def _labelled(configs: Sequence[tuple[Config, dict[str, Any]]]) -> tuple[BenchArm, ...]:
    """Name each arm by its strategy and the keys in which that occurs more than once; `none` first."""
    arms = []
    for config, tree in configs:
        same = [other["norm"] for _, other in configs if other["norm"]["name"] == tree["norm"]["name"]]
        changed = [key for key, value in tree["norm"].items() if any(norm[key] != value for norm in same)]
        ways = {other["eval"]["stats"] for _, other in configs}
        way = [f"stats={config.eval.stats}"] if len(ways) > 1 else []
        label = " ".join([config.norm.name, *(f"{key}={_typed(tree['norm'][key])}" for key in changed), *way])
        arms.append(BenchArm(label, config, tree))
    return tuple(sorted(arms, key=lambda arm: arm.config.norm.name != "none"))


def _typed(value: Any) -> str:
    """Return a value as one types it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def fitting(section: BenchSection, images: DataBundle) -> BenchSection | None:
    """Return the section with the arms that fit `images` and says which do not; None where none does."""
    kept, missing = [], list(section.left_out)
    for arm in section.arms:
        try:
            check(arm.config, images)
            kept.append(arm)
        except IncompatibleError as error:
            missing.append(left_out(arm.label, error))
    return replace(section, arms=tuple(kept), left_out=tuple(missing)) if kept else None


def set_threads(threads: int | None) -> None:
    """Have torch use `threads`, None: as many as at the start of the process."""
    torch.set_num_threads(threads or _THREADS)


def prepared(trainer: TrainerConfig) -> torch.device:
    """Have torch take threads and memory as for a training, and return the device. Errors: as of finding it."""
    keep_freed_memory()
    set_threads(trainer.threads)
    return device_of(trainer.device)


def contest(section: BenchSection, graph: bool = False) -> Contest:
    """Return the contest of a section's training steps, replayed from a `graph` or not.

    Errors: as of reading its data and finding its device.
    """
    config = section.arms[0].config
    device = prepared(config.trainer)
    loaded = {arm.config.data: loaded_data(arm.config, section.images, device) for arm in section.arms}
    bundle, _, batches = loaded[config.data]
    size = len(batches[0][1])
    setting = (*setting_of(config, bundle.name, size, where(device)), *(["graph replay"] if graph else []))

    def make(config: Config) -> Callable[[], Stepper]:
        def made() -> Stepper:
            if config.trainer.compile:
                from torch import _dynamo  # takes a second to import

                # Contenders share the code of their models; beyond 8 versions of it the rest would run eagerly.
                _dynamo.reset()
                _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, 4 * (len(section.arms) + 1))
            return stepper(config, *loaded[config.data], device, graph)

        return made

    steppers = {arm.label: make(arm.config) for arm in section.arms}
    epochs = {arm.label: loaded[arm.config.data][1].steps_per_epoch for arm in section.arms}
    return Contest(section.title, setting, size, device, steppers, section.left_out, graph, epochs)


def loaded_data(
    config: Config, images: DataBundle | None, device: torch.device
) -> tuple[DataBundle, Batches, list[Batch]]:
    """Return the data of an arm, on the device, and its first batches."""
    bundle = images or bundle_of(config.data)
    training_set = device_batches(config, bundle, bundle.train, device, training=True)
    return bundle, training_set, first_batches(training_set)
