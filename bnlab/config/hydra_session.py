"""Hydra over bnlab's configurations, with every file looked at before it is read.

Typer owns the command line. `initialize_config_dir` does what `hydra.main` does before a job, so launchers, sweepers
and `--cfg` behave as Hydra's users know them, but every call returns or raises: messages and exit codes stay ours.

This module imports Hydra at its head, so it is imported where a configuration is composed and nowhere else. All that
bnlab uses of `hydra._internal` is here:
- `FileConfigSource` and `SourcesRegistry`: a file has to be checked before Hydra reads it, and a plugin cannot take
  the place of a reader;
- `Callbacks`: a launcher is set up with a `HydraContext`, which has to have them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from hydra import __version__, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from bnlab.config.files import CONFIG_NAME, EXPERIMENTS, check_file, conf_dir, groups
from bnlab.config.messages import readable
from bnlab.errors import BnlabError, ConfigError

TRUSTED_TARGETS = ("hydra._internal.", "hydra.core.", "hydra_plugins.", "optuna.samplers.", "optuna.pruners.")
TARGET_KEYS = ("_target_", "class", "()")
LONGEST_KEY = 200  # letters; Hydra looks for a file of that name, and names of files end at 255 bytes
LARGEST_INT = 2**63 - 1  # longer ones have no type in torch, and thousands of digits cannot even be printed
# Hydra 1.3 warns when the version whose behaviour is wanted is not named, 1.4 when it is
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if __version__.startswith("1.3.") else {}


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of files, which checks each first.

    It has the name of Hydra's own, which then does not register itself again in the process of a launcher's job.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        path = f"{self.path}/{self._normalize_file_name(config_path)}"
        check_file(path, self.path)
        try:
            return super().load_config(config_path)
        except (ValueError, YAMLError) as error:  # a key given twice, above all
            raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error


class ConfigDir(SearchPathPlugin):
    """The folder of `--config-dir`, searched after bnlab's own configurations."""

    folder: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.append(provider="command-line", path=f"file://{self.folder.resolve()}")


@contextmanager
def session(extra_dir: Path | None = None) -> Iterator[ConfigLoader]:
    """Yield the loader of bnlab's configurations and those in `extra_dir`; Hydra's errors become ConfigError."""
    Plugins.instance().register(ConfigDir)
    SourcesRegistry.instance().types["file"] = FileConfigSource
    ConfigDir.folder = extra_dir
    try:
        with initialize_config_dir(str(conf_dir()), job_name="bnlab", **VERSION_BASE):
            yield GlobalHydra.instance().config_loader()
    except BnlabError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(readable(error)) from error
    except RecursionError as error:
        raise ConfigError("a configuration that takes itself as its default, or is nested too deeply") from error


def too_large(key: str) -> ConfigError:
    """Return the error of a whole number that no setting holds."""
    return ConfigError(f"{key}: is too large a number\nwhole numbers are below 2^63")


@contextmanager
def refusing(overrides: Sequence[str], alone: Callable[[str], object]) -> Iterator[None]:
    """Turn whatever Hydra raises over `overrides` into a ConfigError that names the one which is to blame.

    Its parser and its composer raise any kind for values they do not expect. `alone` tries a single override again.
    """
    try:
        yield
    except (BnlabError, RecursionError):
        raise
    except Exception as error:
        blamed = " ".join(overrides)
        for line in overrides if len(overrides) > 1 else ():
            try:
                alone(line)
            except Exception:
                blamed = line
                break
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            raise ConfigError(readable(error, blamed)) from error
        if "integer string conversion" in str(error):  # Python's, of more digits than it takes
            raise too_large(blamed.partition("=")[0]) from error
        if isinstance(error, (ValueError, OSError)):  # the others speak of Hydra's insides
            raise ConfigError(f"{blamed}: {str(error).partition(chr(10))[0]}") from error
        raise ConfigError(f"{blamed}: cannot be put there\n`bnlab train --cfg all` prints every key") from error


def parsed(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Return `overrides` taken apart; a glob needs the loader to find its options. Errors: ConfigError."""
    parser = OverridesParser.create(config_loader=loader)
    with refusing(overrides, lambda line: parser.parse_overrides([line])):
        found = list(parser.parse_overrides(list(overrides)))
    if too_long := next((o for o in found if len(str(o.key_or_group)) > LONGEST_KEY), None):
        raise ConfigError(f"{too_long.key_or_group}: no such key; it has {len(str(too_long.key_or_group)):,} letters")
    for override in found:
        group, _, key = str(override.key_or_group).partition(".")
        if key == "name" and group in groups():
            raise ConfigError(f"{override.input_line}: chooses no option\nwrite {group}={override.get_value_string()}")
    return found


def composed(loader: ConfigLoader, overrides: Sequence[str], multirun: bool) -> DictConfig:
    """Return what `overrides` come to, Hydra's own part included.

    Errors: ConfigError, as for what names a Python object, for a number beyond 64 bits, and for an option that is none.
    """
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN

    def load(lines: Sequence[str]) -> DictConfig:
        return loader.load_configuration(CONFIG_NAME, list(lines), mode)

    _check_options(loader, parsed(overrides, loader))
    with refusing(overrides, lambda line: load([line])):
        config = load(overrides)
    for where, value in _leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            raise too_large(where)
        is_target = isinstance(value, str) and where.rpartition(".")[2] in TARGET_KEYS
        if is_target and not (where.startswith("hydra.") and value.startswith(TRUSTED_TARGETS)):
            way = "" if where.startswith("hydra.") else "\nadd code of your own to bnlab as CONTRIBUTING.md says"
            raise ConfigError(f"{where}={value}: a configuration may not name Python objects{way}")
    return config


def group_options(loader: ConfigLoader, key: str) -> list[str]:
    """Return the options that files give for a group; none where `key` is no group."""
    if not key.startswith("hydra/") and (ConfigDir.folder is None or not (ConfigDir.folder / key).is_dir()):
        return sorted(file.stem for file in (conf_dir() / key).glob("*.yaml"))  # Hydra takes ten times as long
    return list(loader.get_group_options(key, results_filter=None))


def _check_options(loader: ConfigLoader, overrides: Sequence[Override]) -> None:
    """Refuse a list, a number or null in the place of an option; a group of the user's own may be given a list."""
    for override in overrides:
        group, value = str(override.key_or_group), override.value()
        if not group:
            raise ConfigError(f"{override.input_line}: has no key\nwrite KEY=VALUE, such as norm=ghost")
        if isinstance(value, str) or override.is_delete() or override.is_sweep_override():
            continue
        if not (options := group_options(loader, group)):
            continue
        is_own = (group not in groups() or group == EXPERIMENTS) and not group.startswith("hydra/")
        if not (is_own and isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise ConfigError(f"{override.input_line}: is no option of {group}\nthere are: {', '.join(options)}")


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a tree with its dotted key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}[{index}]")
    else:
        yield path, node


def hydra_settings(config: DictConfig) -> dict[str, Any]:
    """Return what is chosen and set in Hydra's own part: `hydra/launcher` -> joblib, `hydra.launcher.n_jobs` -> 2.

    Its mode, and what it notes there of the command line, are left out.
    """
    tree = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(tree, dict)
    choices = {key: value for key, value in tree["runtime"]["choices"].items() if key.startswith("hydra/")}
    kept = {key: tree[key] for key in tree if key not in ("runtime", "overrides", "mode")}
    kept["runtime"] = {"output_dir": tree["runtime"]["output_dir"]}
    kept["job"] = {key: value for key, value in tree["job"].items() if key not in ("override_dirname", "config_name")}
    return choices | dict(_leaves(kept, "hydra"))


def launcher(loader: ConfigLoader, config: DictConfig, task: TaskFunction) -> Launcher:
    """Return the launcher that a configuration chooses, ready to call `task`."""
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)


def show_config(overrides: Sequence[str], part: str, resolve: bool, package: str | None) -> None:
    """Print the composed configuration as Hydra's `--cfg` does; inside of a session. Errors: ConfigError."""
    try:
        with redirect_stderr(io.StringIO()):  # its own words for the one thing that it ends the process for
            _hydra().show_cfg(CONFIG_NAME, list(overrides), cfg_type=part, package=package, resolve=resolve)
    except SystemExit:
        raise ConfigError(
            f"--package {package}: no such part\n`bnlab train --cfg {part}` shows those that there are"
        ) from None


def show_info(overrides: Sequence[str], what: str) -> None:
    """Print what Hydra's `--info` does; inside of a session."""
    _hydra().show_info(what, config_name=CONFIG_NAME, overrides=list(overrides))


def search(overrides: Sequence[str], task: TaskFunction) -> None:
    """Let the chosen sweeper call `task` for jobs that it chooses itself; inside of a session."""
    _hydra().multirun(config_name=CONFIG_NAME, task_function=task, overrides=list(overrides))


def _hydra() -> Any:
    return GlobalHydra.instance().hydra
