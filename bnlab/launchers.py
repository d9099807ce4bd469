"""Hydra's launchers and sweepers: jobs are handed to them, and come back in whatever process they chose.

A job is called by its name, the `hydra.sweep.subdir`; everything else about it travels inside the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnlab.hydra_app import CONFIG_NAME, compose, composed, session

if TYPE_CHECKING:
    from omegaconf import DictConfig

Task = Callable[["DictConfig"], "float | str"]


def search(task: Task, overrides: Sequence[str], folder: Path, extra_dir: Path | None = None) -> None:
    """Let a sweeper that chooses jobs while it goes on have its way below `folder`."""
    with session(extra_dir) as hydra:
        lines = [*overrides, "hydra.mode=MULTIRUN", f"hydra.sweep.dir='{folder}'"]
        hydra.multirun(config_name=CONFIG_NAME, task_function=task, overrides=lines)


def machinery(overrides: Sequence[str], extra_dir: Path | None = None) -> tuple[str, str]:
    """Return the launcher and the sweeper of a sweep, such as ("joblib", "basic")."""
    own = hydra_lines(overrides)
    if not own and extra_dir is None:
        return "basic", "basic"
    choices = compose(own, True, extra_dir).hydra.runtime.choices
    return choices["hydra/launcher"], choices["hydra/sweeper"]


def distribute(
    task: Task, overrides: Sequence[str], folder: Path, names: Sequence[str], extra_dir: Path | None = None
) -> None:
    """Let Hydra's launcher call `task` once for each of `names`, which become the jobs' `hydra.sweep.subdir`."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    with session(extra_dir) as hydra:
        lines = [*hydra_lines(overrides), "hydra.mode=MULTIRUN", f"hydra.sweep.dir='{folder}'"]
        config = composed(hydra, lines, True)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
        launcher.launch([[f"hydra.sweep.subdir='{name}'"] for name in names], initial_job_idx=0)


def hydra_lines(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of Hydra's own keys, such as the launcher."""
    return [line for line in overrides if line.strip().lstrip("+~").startswith(("hydra.", "hydra/"))]


@dataclass(frozen=True)
class Handed:
    """What Hydra says of the job that it calls for now."""

    subdir: str
    number: int
    overrides: list[str]


def current_job() -> Handed:
    """Return the job inside of which this is called."""
    from hydra.core.hydra_config import HydraConfig

    settings = HydraConfig.get()
    return Handed(str(settings.sweep.subdir), settings.job.num, list(settings.overrides.task))
