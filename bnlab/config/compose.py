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

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

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


def planned(
    overrides: Sequence[str], multirun: bool, extra_dir: Path | None = None
) -> list[tuple[list[str], dict[str, Any]]]:
    """Return (its overrides, its configuration as plain values) of every job that a command line stands for.

    A sweep is taken apart as Hydra's basic sweeper does it. Another sweeper chooses its jobs while it runs: then only
    what all of them share can be looked at before.
    """
    from bnlab.config.hydra_session import composed, session

    with session(extra_dir) as loader:
        if not multirun:
            return [(list(overrides), plain(composed(loader, overrides, False)))]
        jobs_lines = _taken_apart(loader, overrides)
        return list(zip(jobs_lines, _each(loader, jobs_lines), strict=True))


def _taken_apart(loader: ConfigLoader, overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep; of a search, those that all of its jobs share."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from bnlab.config.hydra_session import composed

    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides(list(overrides))
    for override in given:
        if override.is_sweep_override() and override.is_hydra_override():
            raise ConfigError(f"{override.get_key_element()}: hydra's own keys cannot be swept")
    settings = [str(o.input_line) for o in given if o.is_hydra_override() or not o.is_sweep_override()]
    sweeper = composed(loader, settings, True).hydra.sweeper
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return [settings]
    params = parser.parse_overrides([f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()])
    by_key = {o.get_key_element(): o for o in (*params, *given) if not o.is_hydra_override()}  # the last one counts
    count = math.prod(map(_num_choices, by_key.values()))
    if not 1 <= count <= MOST_JOBS:
        raise ConfigError(f"the sweep comes to {count:,} jobs\nfrom 1 to {MOST_JOBS:,} can be in one")
    shared = [str(o.input_line) for o in given if o.is_hydra_override()]
    return [[*shared, *job] for job in itertools.product(*map(_choices, by_key.values()))]


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


def _each(loader: ConfigLoader, jobs_lines: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yield the configuration of each job.

    What takes a tenth of a second, the choice of options, is composed once for all jobs that agree in it, and their
    values are put in; only a job whose values are not plain is composed by itself.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from bnlab.config.hydra_session import composed

    parser = OverridesParser.create(config_loader=loader)
    is_group = cache(lambda key: bool(loader.get_group_options(key, results_filter=None)))

    @cache
    def value_of(line: str) -> Override | None:
        """Return an override that sets a value; None for one that chooses an option or is Hydra's own."""
        (override,) = parser.parse_overrides([line])
        return None if override.is_hydra_override() or is_group(override.key_or_group) else override

    trees: dict[tuple[str, ...], dict[str, Any] | None] = {}
    for lines in jobs_lines:
        options = tuple(line for line in lines if value_of(line) is None)
        if options not in trees:
            trees[options] = _literal(composed(loader, options, True))
        tree = trees[options]
        for override in filter(None, map(value_of, lines)):
            tree = None if tree is None else _with_plain_value(tree, override)
        yield plain(composed(loader, lines, True)) if tree is None else tree


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
    return node is None or type(node) in (bool, int, float)


def adjusted(tree: Mapping[str, Any], overrides: Sequence[str], allowed: Sequence[str]) -> dict[str, Any]:
    """Return a tree of plain values with `overrides` of its keys. Errors: ConfigError for a key not in `allowed`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    changed = copy.deepcopy(dict(tree))  # values only: text in it that looks like an interpolation stays text
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(readable(error)) from error
    for override in parsed:
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


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys and groups that `overrides` give several values, or an interval of them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def globbed(overrides: Sequence[str], group: str, extra_dir: Path | None = None) -> tuple[int, list[str]] | None:
    """Return where `overrides` takes the options of `group` by a pattern such as `norm=glob(*)`, and which they are."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob

    from bnlab.config.hydra_session import session

    with session(extra_dir) as loader:
        parser = OverridesParser.create(config_loader=loader)
        for index, override in enumerate(parser.parse_overrides(list(overrides))):
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


def complete(word: str) -> list[str]:
    """Return the completions of a partly typed override, from Hydra's own engine."""
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from bnlab.config.hydra_session import session

    with session() as loader:
        completions: list[str] = DefaultCompletionPlugin(loader)._query(CONFIG_NAME, word)
        return completions
