"""What the overrides of a command line come to: one configuration, or one for each job of a sweep, as plain values.

Hydra composes (`hydra_session`); here a sweep is taken apart, and a configuration shown, completed, changed.
Configurations name options, never Python objects.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.config.files import CONFIG_NAME
from bnlab.config.messages import readable
from bnlab.errors import ConfigError, did_you_mean
from bnlab.record.latest import PLACE

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

HEEDED_BY_RUNS = ("hydra.mode", "hydra.searchpath")
HEEDED = (*HEEDED_BY_RUNS, "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper")  # by sweeps
ONE_ALONE = "give one such file at a time, or put what they set on the command line"
MOST_JOBS = 10_000  # of a sweep: all are composed and checked before the first starts


def compose(overrides: Sequence[str], multirun: bool = False, extra_dir: Path | None = None) -> DictConfig:
    """Return what `overrides` come to, Hydra's own part included; refuse anything that names a Python object."""
    from bnlab.config.hydra_session import composed, session

    with session(extra_dir) as loader:
        return composed(loader, overrides, multirun)


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the job's part of a configuration as plain values, every interpolation resolved."""
    from omegaconf import OmegaConf

    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    tree = OmegaConf.to_container(own, resolve=True)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def as_yaml(tree: Mapping[str, Any]) -> str:
    """Return plain values as YAML. Errors: ConfigError for text that begins an interpolation and does not end it."""
    return "".join(_part_as_yaml(json.dumps({key: value})) for key, value in tree.items()) or "{}\n"


@lru_cache(1000)  # a part is the same in most jobs of a sweep
def _part_as_yaml(part: str) -> str:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_yaml(OmegaConf.create(json.loads(part)))
    except OmegaConfBaseException as error:
        raise ConfigError(readable(error)) from error


def jobs(overrides: Sequence[str], multirun: bool, extra_dir: Path | None = None) -> list[dict[str, Any]]:
    """Return the configurations that a command line stands for, as plain values."""
    return [tree for _, tree in planned(overrides, multirun, extra_dir)]


def hydra_lines(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of Hydra's own keys, such as the launcher."""
    return [line for line in overrides if line.strip().lstrip("+~").startswith(("hydra.", "hydra/"))]


def plain_hydra(overrides: Sequence[str], extra_dir: Path | None) -> bool:
    """Return whether Hydra's own keys can only be as bnlab has them: no other file is read and none of them is set."""
    return extra_dir is None and not hydra_lines(overrides)


def is_multirun(overrides: Sequence[str], asked: bool, extra_dir: Path | None = None) -> bool:
    """Return whether a command line is a sweep: `-m` was given (`asked`), or `hydra.mode` says so in it or in a file.

    Errors: ConfigError where `hydra.mode` says otherwise.
    """
    if plain_hydra(overrides, extra_dir):
        return asked
    mode = compose(unswept(overrides, extra_dir), asked, extra_dir).hydra.mode
    if asked and mode is not None and mode.name == "RUN":
        raise ConfigError("hydra.mode=RUN: is against -m\nleave one of them out")
    return asked or (mode is not None and mode.name == "MULTIRUN")


def has_sweeps(overrides: Sequence[str], extra_dir: Path | None = None) -> bool:
    """Return whether an override has several values: `seed=0,1`, `norm=glob(*)`. Errors: ConfigError."""
    from bnlab.config.hydra_session import parsed, session

    with session(extra_dir) as loader:
        return any(override.is_sweep_override() for override in parsed(overrides, loader))


def unswept(overrides: Sequence[str], extra_dir: Path | None = None) -> list[str]:
    """Return the overrides that all jobs share: Hydra's own, and those of one value. Errors: ConfigError.

    Without keys of a strategy, which another strategy of the sweep may lack.
    """
    from bnlab.config.hydra_session import parsed, session

    with session(extra_dir) as loader:
        return _shared(parsed(overrides, loader))


def _shared(overrides: Sequence[Override]) -> list[str]:
    return [str(o.input_line) for o in overrides if not o.is_sweep_override() and not _is_of_a_strategy(o)]


def _is_of_a_strategy(override: Override) -> bool:
    return str(override.key_or_group).startswith("norm.")


def planned(
    overrides: Sequence[str], multirun: bool, extra_dir: Path | None = None
) -> list[tuple[list[str], dict[str, Any]]]:
    """Return (its overrides, its configuration as plain values) of every job that a command line stands for.

    A sweep is taken apart as Hydra's basic sweeper does it. Another sweeper chooses its jobs while it runs: then only
    what all of them share can be looked at before. Keys of Hydra's that bnlab does not heed are refused.
    """
    from bnlab.config.hydra_session import composed, hydra_settings, session

    is_plain = plain_hydra(overrides, extra_dir)
    usual = None if is_plain else _usual_settings()
    with session(extra_dir) as loader:
        if not multirun:
            if usual is None:
                return [(list(overrides), copy.deepcopy(tree)) for tree in _each(loader, [overrides], None, False)]
            config = composed(loader, overrides, False)
            _check_heeded(hydra_settings(config), usual, HEEDED_BY_RUNS)
            return [(list(overrides), plain(config))]
        jobs_lines, settings = _taken_apart(loader, overrides, is_plain)
        if usual is not None:
            _check_heeded(settings, usual, HEEDED)
        return list(zip(jobs_lines, _each(loader, jobs_lines, None if usual is None else settings), strict=True))


@cache
def _usual_settings() -> dict[str, Any]:
    """Return Hydra's own part as it is without a word about it."""
    from bnlab.config.hydra_session import hydra_settings

    return hydra_settings(compose([]))


def _check_heeded(
    settings: Mapping[str, Any], usual: Mapping[str, Any], heeded: Sequence[str], alone: str = ""
) -> None:
    """Refuse the first of Hydra's keys that is not as `usual` and not `heeded`; `alone`: a job's own overrides.

    Errors: ConfigError.
    """
    for key, value in settings.items():
        if usual.get(key) == value or key.startswith(tuple(heeded)):
            continue
        if alone:
            raise ConfigError(
                f"{key}={value}: comes with {alone}, and a job of a sweep cannot have its own\n{ONE_ALONE}"
            )
        if key.startswith(HEEDED):
            raise ConfigError(f"{key}={value}: is for a sweep\nadd -m to run one")
        if key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.runtime.output_dir"):
            raise ConfigError(f"{key}={value}: has no effect in bnlab\nset {PLACE}=FOLDER, which every command heeds")
        raise ConfigError(f"{key}={value}: has no effect in bnlab\nof Hydra's own keys these have: {', '.join(HEEDED)}")


def _taken_apart(
    loader: ConfigLoader, overrides: Sequence[str], is_plain: bool
) -> tuple[list[list[str]], dict[str, Any]]:
    """Return the overrides of each job of a sweep, of a search those that all of its jobs share; Hydra's settings.

    What the command line says of a key counts more than what a file sweeps. `is_plain`: no file can say anything.
    """
    from bnlab.config.hydra_session import composed, hydra_settings, parsed

    given = parsed(overrides, loader)
    for override in given:
        if override.is_sweep_override() and override.is_hydra_override():
            raise ConfigError(f"{override.get_key_element()}: hydra's own keys cannot be swept")
    if is_plain:
        sweeper: Mapping[str, Any] = {"_target_": ".BasicSweeper"}
        settings: dict[str, Any] = {}
    else:
        config = composed(loader, _shared(given), True)
        sweeper, settings = config.hydra.sweeper, hydra_settings(config)
    params = parsed([f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()], loader)
    by_name = {str(o.key_or_group): o for o in params}
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        if twice := next((o for o in given if o.is_sweep_override() and o.key_or_group in by_name), None):
            raise ConfigError(f"{twice.input_line}: is in hydra.sweeper.params of a file, too\ngive it in one place")
        return [[str(o.input_line) for o in given if not o.is_sweep_override()]], settings
    if sweeper.get("max_batch_size") is not None:
        raise ConfigError(f"hydra.sweeper.max_batch_size={sweeper['max_batch_size']}: has no effect in bnlab")
    for override in given:
        if not override.is_hydra_override():
            known = override.key_or_group in by_name and not override.is_delete()
            by_name[str(override.key_or_group) if known else override.get_key_element()] = override
    parts = _by_strategy(loader, by_name)
    count = sum(math.prod(map(_num_choices, part)) for part in parts)
    if not 1 <= count <= MOST_JOBS:
        raise ConfigError(f"the sweep comes to {count:,} jobs\nfrom 1 to {MOST_JOBS:,} can be in one")
    own = hydra_lines([str(o.input_line) for o in given])
    return [[*own, *job] for part in parts for job in itertools.product(*map(_choices, part))], settings


def _by_strategy(loader: ConfigLoader, overrides: Mapping[str, Override]) -> list[list[Override]]:
    """Return the overrides of a sweep in parts, each a sweep of its own: a key is for the strategies that have it.

    A key that none of them has stays in all parts, where it is refused. Where all have the same of the keys that are
    given there is one part, in the order of the command line.
    """
    from bnlab.config.hydra_session import composed, parsed

    swept = overrides.get("norm")
    given = {str(o.key_or_group) for o in overrides.values() if _is_of_a_strategy(o)}
    if not given or swept is None or not swept.is_sweep_override() or swept.is_interval_sweep():
        return [list(overrides.values())]
    has = {line: {f"norm.{key}" for key in composed(loader, [line], True).norm} & given for line in _choices(swept)}
    known = set.union(*has.values())
    if all(keys == known for keys in has.values()):
        return [list(overrides.values())]
    parts = []
    for line, keys in has.items():
        (chosen,) = parsed([line], loader)
        kept = [o for o in overrides.values() if str(o.key_or_group) not in known - keys]
        parts.append([chosen if o is swept else o for o in kept])
    return parts


def _num_choices(override: Override) -> int:
    """Return how many values an override stands for; a range is counted, not written out. Errors: ConfigError."""
    from hydra.core.override_parser.types import RangeSweep

    if not override.is_sweep_override():
        return 1
    if override.is_interval_sweep():
        raise ConfigError(f"{override.input_line}: an interval is for a search, such as hydra/sweeper=optuna")
    if isinstance(value := override.value(), RangeSweep):
        start, stop, step = (float(bound or 0) for bound in (value.start, value.stop, value.step))
        if not step or not all(map(math.isfinite, (start, stop, step))):
            raise ConfigError(f"{override.input_line}: a range needs numbers, and a step other than 0")
        return max(0, math.ceil((stop - start) / step))
    return sum(1 for _ in override.sweep_iterator())


def _choices(override: Override) -> list[str]:
    """Return the overrides that one with several values stands for."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


_OF_OWN_FILES: dict[tuple[str, ...], dict[str, Any] | None] = {}  # by options: claims ask for the same few again


def _each(
    loader: ConfigLoader, jobs_lines: Sequence[Sequence[str]], settings: Mapping[str, Any] | None, multirun: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield the configuration of each job; with `settings` none may have others of Hydra's own.

    What takes a tenth of a second, the choice of options, is composed once for all jobs that agree in it, and their
    values are put in; only a job whose values are not plain is composed by itself.
    """
    from bnlab.config.hydra_session import composed, group_options, hydra_settings, parsed

    @cache
    def value_of(line: str) -> Override | None:
        """Return an override that sets a value; None for one that chooses an option or is Hydra's own."""
        (override,) = parsed([line], loader)
        return None if override.is_hydra_override() or group_options(loader, override.key_or_group) else override

    trees = _OF_OWN_FILES if settings is None else {}
    for lines in jobs_lines:
        options = tuple(line for line in lines if value_of(line) is None)
        if options not in trees:
            config = composed(loader, options, multirun)
            if settings is not None:
                _check_heeded(hydra_settings(config), settings, (), " ".join(options))
            trees[options] = _literal(config)
        tree = trees[options]
        for override in filter(None, map(value_of, lines)):
            tree = None if tree is None else _with_plain_value(tree, override)
        yield plain(composed(loader, lines, multirun)) if tree is None else tree


def _literal(config: DictConfig) -> dict[str, Any] | None:
    """Return the job's part of a configuration as plain values; None if a value depends on another, or is missing."""
    from omegaconf import OmegaConf

    as_written = OmegaConf.to_container(config, resolve=False)
    assert isinstance(as_written, dict)
    return plain(config) if _is_literal({key: as_written[key] for key in as_written if key != "hydra"}) else None


def _with_plain_value(tree: Mapping[str, Any], override: Override) -> dict[str, Any] | None:
    """Return plain values with one of them replaced, sharing the rest; None where it is not that simple."""
    from hydra.core.override_parser.types import OverrideType

    from bnlab.config.hydra_session import TARGET_KEYS

    value = override.value()
    if isinstance(value, dict) or not _is_literal(value):
        return None
    if override.type != OverrideType.CHANGE or override.package is not None:
        return None
    changed = node = dict(tree)
    *parents, last = override.key_or_group.split(".")
    for name in parents:
        if not isinstance(node.get(name), dict):
            return None
        node[name] = node = dict(node[name])
    if last not in node or last in TARGET_KEYS or isinstance(node[last], dict):
        return None
    node[last] = value
    return changed


def _is_literal(node: Any) -> bool:
    """Say whether plain values mean themselves: no interpolation, nothing missing, no value of another type."""
    if isinstance(node, dict):
        return all(map(_is_literal, node.values()))
    if isinstance(node, list):
        return all(map(_is_literal, node))
    if isinstance(node, str):
        return "$" not in node and node != "???"
    return node is None or type(node) in (bool, float) or (type(node) is int and abs(node) < 2**63)


def adjusted(tree: Mapping[str, Any], overrides: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """Return a tree of plain values with `overrides` of its keys. Errors: ConfigError for a key not in `allowed`."""
    from omegaconf import OmegaConf

    from bnlab.config.hydra_session import parsed

    changed = copy.deepcopy(dict(tree))  # values only: text in it that looks like an interpolation stays text
    for override in parsed(overrides):
        if override.key_or_group not in allowed or override.is_sweep_override() or override.is_delete():
            near = did_you_mean(override.key_or_group, allowed)
            raise ConfigError(f"{override.input_line}: cannot be set here{near}\nthese can: {', '.join(allowed)}")
        *parents, last = override.key_or_group.split(".")
        node = changed
        for name in parents:
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        node[last] = plain(OmegaConf.create({last: override.value()}))[last]
    return changed


def globbed(overrides: Sequence[str], group: str, extra_dir: Path | None = None) -> tuple[int, list[str]] | None:
    """Return where `overrides` takes the options of `group` by a pattern such as `norm=glob(*)`, and which they are."""
    from hydra.core.override_parser.types import Glob

    from bnlab.config.hydra_session import parsed, session

    with session(extra_dir) as loader:
        for index, override in enumerate(parsed(overrides, loader)):
            if override.key_or_group == group and isinstance(override.value(), Glob):
                return index, list(override.sweep_string_iterator())
    return None


def show_config(
    overrides: Sequence[str], part: str, resolve: bool, package: str | None, extra_dir: Path | None = None
) -> None:
    """Print the composed configuration as Hydra's `--cfg` does."""
    from bnlab.config import hydra_session

    with hydra_session.session(extra_dir) as loader:
        hydra_session.composed(loader, overrides, False)
        hydra_session.show_config(overrides, part, resolve, package)


def show_info(overrides: Sequence[str], what: str, extra_dir: Path | None = None) -> None:
    """Print what Hydra's `--info` prints."""
    from bnlab.config import hydra_session

    shown = io.StringIO()  # it goes through a log, which would not pass on that nothing can be written
    with hydra_session.session(extra_dir), redirect_stdout(shown):
        hydra_session.show_info(overrides, what)
    sys.stdout.write(shown.getvalue())


def complete(line: str) -> list[str]:
    """Return the completions of the last of a line of overrides, partly typed, from Hydra's own engine."""
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from bnlab.config.hydra_session import session

    with session() as loader:
        completions: list[str] = DefaultCompletionPlugin(loader)._query(CONFIG_NAME, line)
        return completions
