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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import __version__, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from bnlab.config.files import CONFIG_NAME, check_file, conf_dir
from bnlab.config.messages import readable
from bnlab.errors import BnlabError, ConfigError

TRUSTED_TARGETS = ("hydra._internal.", "hydra.core.", "hydra_plugins.", "optuna.samplers.", "optuna.pruners.")
TARGET_KEYS = ("_target_", "class", "()")
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


def composed(loader: ConfigLoader, overrides: Sequence[str], multirun: bool) -> DictConfig:
    """Return what `overrides` come to, Hydra's own part included; refuse anything that names a Python object."""
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    try:
        config = loader.load_configuration(CONFIG_NAME, list(overrides), mode)
    except ValueError as error:  # of overrides such as `optim=null`
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error
    for where, target in _targets(OmegaConf.to_container(config, resolve=False)):
        if not (where.startswith("hydra.") and target.startswith(TRUSTED_TARGETS)):
            raise ConfigError(f"{where}={target}: a configuration may not name Python objects")
    return config


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in TARGET_KEYS and isinstance(value, str):
                yield f"{path}.{key}".lstrip("."), value
            yield from _targets(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _targets(value, f"{path}[{index}]")


def launcher(loader: ConfigLoader, config: DictConfig, task: TaskFunction) -> Launcher:
    """Return the launcher that a configuration chooses, ready to call `task`."""
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)


def show_config(overrides: Sequence[str], part: str, resolve: bool, package: str | None) -> None:
    """Print the composed configuration as Hydra's `--cfg` does; inside of a session."""
    _hydra().show_cfg(CONFIG_NAME, list(overrides), cfg_type=part, package=package, resolve=resolve)


def show_info(overrides: Sequence[str], what: str) -> None:
    """Print what Hydra's `--info` does; inside of a session."""
    _hydra().show_info(what, config_name=CONFIG_NAME, overrides=list(overrides))


def search(overrides: Sequence[str], task: TaskFunction) -> None:
    """Let the chosen sweeper call `task` for jobs that it chooses itself; inside of a session."""
    _hydra().multirun(config_name=CONFIG_NAME, task_function=task, overrides=list(overrides))


def _hydra() -> Any:
    return GlobalHydra.instance().hydra
