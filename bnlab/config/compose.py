"""The only file that imports Hydra: compose, show, complete, launch.

Typer owns the command line. `initialize_config_dir` puts the object that `hydra.main` drives into GlobalHydra, so
launchers, sweepers and `--cfg` behave as Hydra's users know them, but every call returns or raises: messages and exit
codes stay ours. Configurations name options, never Python objects.
"""

from __future__ import annotations

import copy
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.config.files import CONFIG_NAME, check_file, conf_dir
from bnlab.config.messages import readable
from bnlab.errors import BnlabError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

TRUSTED_TARGETS = ("hydra._internal.", "hydra.core.", "hydra_plugins.", "optuna.samplers.", "optuna.pruners.")
TARGET_KEYS = ("_target_", "class", "()")
MOST_JOBS = 10_000  # of a sweep: all are composed and checked before the first starts


@contextmanager
def session(extra_dir: Path | None = None) -> Iterator[Hydra]:
    """Yield Hydra over bnlab's configurations, and over `extra_dir` before them; its errors become ConfigError."""
    from hydra import __version__, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _check_files()
    try:
        # Hydra 1.3 warns without a base of its behaviour, 1.4 warns of one and has that of 1.3
        base: dict[str, Any] = {"version_base": "1.3"} if __version__.startswith("1.3.") else {}
        with initialize_config_dir(str(conf_dir()), job_name="bnlab", **base):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            if extra_dir is not None:
                _put_first(hydra, extra_dir)
            yield hydra
    except BnlabError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(readable(error)) from error
    except RecursionError as error:
        raise ConfigError("a configuration that takes itself as its default, or is nested too deeply") from error


@cache
def _check_files() -> None:
    """Have every file that Hydra composes looked at first, wherever it lies."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult
    from yaml import YAMLError  # type: ignore[import-untyped]

    class CheckedFiles(FileConfigSource):
        def load_config(self, config_path: str) -> ConfigResult:
            path = f"{self.path}/{self._normalize_file_name(config_path)}"
            check_file(path, self.path)
            try:
                return super().load_config(config_path)
            except (ValueError, YAMLError) as error:  # a key given twice, above all
                raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error

    Plugins.instance()  # registers its own sources, once
    SourcesRegistry.instance().types["file"] = CheckedFiles


def _put_first(hydra: Hydra, folder: Path) -> None:
    from hydra._internal.config_repository import ConfigRepository
    from hydra.core.config_search_path import SearchPathQuery

    loader: Any = hydra.config_loader
    search_path = loader.get_search_path()
    search_path.prepend(
        provider="command-line", path=f"file://{folder.resolve()}", anchor=SearchPathQuery(provider="schema")
    )
    loader.repository = ConfigRepository(config_search_path=search_path)


def compose(overrides: Sequence[str], multirun: bool = False, extra_dir: Path | None = None) -> DictConfig:
    """Return what `overrides` come to, Hydra's own part included; refuse anything that names a Python object."""
    with session(extra_dir) as hydra:
        return composed(hydra, overrides, multirun)


def composed(hydra: Hydra, overrides: Sequence[str], multirun: bool) -> DictConfig:
    from hydra.types import RunMode

    try:
        config = hydra.compose_config(
            config_name=CONFIG_NAME,
            overrides=list(overrides),
            run_mode=RunMode.MULTIRUN if multirun else RunMode.RUN,
            with_log_configuration=False,
        )
    except ValueError as error:  # of overrides such as `optim=null`
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
    refuse_objects(config)
    return config


def refuse_objects(config: DictConfig) -> None:
    """Raise ConfigError where a configuration names a Python object that is not Hydra's own."""
    from omegaconf import OmegaConf

    for where, target in _targets(OmegaConf.to_container(config, resolve=False)):
        if not (where.startswith("hydra.") and target.startswith(TRUSTED_TARGETS)):
            raise ConfigError(f"{where}={target}: a configuration may not name Python objects")


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in TARGET_KEYS and isinstance(value, str):
                yield f"{path}.{key}".lstrip("."), value
            yield from _targets(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _targets(value, f"{path}[{index}]")


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


def planned(
    overrides: Sequence[str], multirun: bool, extra_dir: Path | None = None
) -> list[tuple[list[str], dict[str, Any]]]:
    """Return (its overrides, its configuration as plain values) of every job that a command line stands for.

    A sweep is taken apart as Hydra's basic sweeper does it. Another sweeper chooses its jobs while it runs: then only
    what all of them share can be looked at before.
    """
    with session(extra_dir) as hydra:
        whole = composed(hydra, [] if multirun else overrides, multirun)
        if not multirun:
            return [(list(overrides), plain(whole))]
        parts = _sweep(hydra, overrides)
        return list(zip(parts, _each(hydra, parts), strict=True))


def _each(hydra: Hydra, parts: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yield the configuration of each job; what takes a tenth of a second, the choice of options, is done once for all
    jobs that agree in it, and their values are put in: plain ones here, all others by Hydra's own function."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    loader: Any = hydra.config_loader
    parser = OverridesParser.create(config_loader=loader)

    @cache
    def parsed(line: str) -> tuple[Override, bool]:
        """Return an override, and whether it sets a value rather than chooses an option."""
        (override,) = parser.parse_overrides([line])
        return override, not override.is_hydra_override() and not loader.repository.group_exists(override.key_or_group)

    bases: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any] | None]] = {}
    for part in parts:
        values = [override for override, sets_value in map(parsed, part) if sets_value]
        options = tuple(line for line in part if not parsed(line)[1])
        if options not in bases:
            whole = composed(hydra, options, True)
            base = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
            OmegaConf.set_struct(base, True)
            bases[options] = base, _literal(base)
        base, tree = bases[options]
        for override in values:
            tree = None if tree is None else _with_plain_value(tree, override)
        if tree is None:
            config = copy.deepcopy(base)
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
            refuse_objects(config)
            tree = plain(config)
        yield tree


def _literal(config: DictConfig) -> dict[str, Any] | None:
    """Return a configuration as plain values; None if any of them depends on another, or is missing."""
    from omegaconf import OmegaConf

    def fixed(node: Any) -> bool:
        if isinstance(node, (Mapping, list)):
            return all(map(fixed, node.values() if isinstance(node, Mapping) else node))
        return not isinstance(node, str) or _is_literal(node)

    return plain(config) if fixed(OmegaConf.to_container(config, resolve=False)) else None


def _with_plain_value(tree: Mapping[str, Any], override: Override) -> dict[str, Any] | None:
    """Return plain values with one of them replaced, sharing the rest; None where it is not that simple."""
    from hydra.core.override_parser.types import OverrideType

    value = override.value()
    simple = value is None or type(value) in (bool, int, float) or (type(value) is str and _is_literal(value))
    if not simple or override.type != OverrideType.CHANGE or override.package is not None:
        return None
    changed = node = dict(tree)
    *parents, last = override.key_or_group.split(".")
    for name in parents:
        if not isinstance(node.get(name), dict):
            return None
        node[name] = node = dict(node[name])
    if last not in node or last in TARGET_KEYS or isinstance(node[last], (dict, list)):
        return None
    node[last] = value
    return changed


def _is_literal(text: str) -> bool:
    return "$" not in text and text != "???"


def adjusted(tree: Mapping[str, Any], overrides: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """Return a tree of plain values with `overrides` of its keys. Errors: ConfigError for a key not in `allowed`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    found = copy.deepcopy(dict(tree))  # values only: text in it that looks like an interpolation stays text
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(readable(error)) from error
    for override in parsed:
        if override.key_or_group not in allowed or override.is_sweep_override() or override.is_delete():
            near = did_you_mean(override.key_or_group, allowed)
            raise ConfigError(f"{override.input_line}: cannot be set here{near}\nthese can: {', '.join(allowed)}")
        *parents, last = override.key_or_group.split(".")
        node = found
        for name in parents:
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        node[last] = plain(OmegaConf.create({last: override.value()}))[last]
    return found


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys and groups that `overrides` give several values, or an interval of them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def globbed(overrides: Sequence[str], group: str, extra_dir: Path | None = None) -> tuple[int, list[str]] | None:
    """Return where `overrides` takes the options of `group` by a pattern such as `norm=glob(*)`, and which they are."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob

    with session(extra_dir) as hydra:
        parser = OverridesParser.create(config_loader=hydra.config_loader)
        for index, override in enumerate(parser.parse_overrides(list(overrides))):
            if override.key_or_group == group and isinstance(override.value(), Glob):
                return index, list(override.sweep_string_iterator())
    return None


def _sweep(hydra: Hydra, overrides: Sequence[str]) -> list[list[str]]:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(list(overrides))
    for override in parsed:
        if override.is_sweep_override() and override.is_hydra_override():
            raise ConfigError(f"{override.get_key_element()}: hydra's own keys cannot be swept")
    settings = [o.input_line for o in parsed if o.is_hydra_override() or not o.is_sweep_override()]
    base = composed(hydra, [line for line in settings if line], True)
    swept = [o for o in parsed if not o.is_hydra_override()]
    if base.hydra.sweeper.get("_target_") != "hydra._internal.core_plugins.basic_sweeper.BasicSweeper":
        return [[line for line in settings if line]]
    params = [f"{key}={value}" for key, value in (base.hydra.sweeper.get("params") or {}).items()]
    swept += OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(params)
    count = math.prod(map(_num_choices, swept))
    if not 1 <= count <= MOST_JOBS:
        raise ConfigError(f"the sweep comes to {count:,} jobs\nfrom 1 to {MOST_JOBS:,} can be in one")
    hydra_settings = [o.input_line for o in parsed if o.is_hydra_override() and o.input_line]
    (batch,) = BasicSweeper.split_arguments(swept, max_batch_size=None)
    return [[*hydra_settings, *part] for part in batch]


def _num_choices(override: Override) -> int:
    """Return how many values an override stands for; a range is counted, not written out. Errors: ConfigError."""
    from hydra.core.override_parser.types import RangeSweep

    if not override.is_sweep_override():
        return 1
    if isinstance(value := override.value(), RangeSweep):
        if not value.step or not all(map(math.isfinite, (value.start or 0, value.stop or 0, value.step))):
            raise ConfigError(f"{override.input_line}: a range needs numbers, and a step other than 0")
        return max(0, math.ceil(((value.stop or 0) - (value.start or 0)) / value.step))
    return sum(1 for _ in override.sweep_iterator())


def show_config(
    overrides: Sequence[str], part: str, resolve: bool, package: str | None, extra_dir: Path | None = None
) -> None:
    """Print the composed configuration as Hydra's `--cfg` does."""
    with session(extra_dir) as hydra:
        composed(hydra, overrides, False)
        hydra.show_cfg(
            config_name=CONFIG_NAME, overrides=list(overrides), cfg_type=part, package=package, resolve=resolve
        )


def show_info(overrides: Sequence[str], what: str, extra_dir: Path | None = None) -> None:
    """Print what Hydra's `--info` prints."""
    shown = io.StringIO()  # it goes through a log, which would not pass on that nothing can be written
    with session(extra_dir) as hydra, redirect_stdout(shown):
        hydra.show_info(what, config_name=CONFIG_NAME, overrides=list(overrides))
    sys.stdout.write(shown.getvalue())


def complete(word: str) -> list[str]:
    """Return the completions of a partly typed override, from Hydra's own engine."""
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    with session() as hydra:
        found: list[str] = DefaultCompletionPlugin(hydra.config_loader)._query(CONFIG_NAME, word)
        return found
