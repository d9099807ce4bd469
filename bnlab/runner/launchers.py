"""Hydra's launchers and sweepers: jobs are handed to them, and come back in whatever process they chose.

A job is called by its name, the `hydra.sweep.subdir`; everything else about it travels inside the task.
`settings` is the one place that says how many jobs run at once, on how many threads, and which of the plugins' own
defaults are not bnlab's.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.config.compose import compose, plain_hydra
from bnlab.errors import ConfigError, EnvironmentFault

if TYPE_CHECKING:
    from omegaconf import DictConfig

Task = Callable[["DictConfig"], "float | str"]

EXTRAS = {  # option -> the extra of bnlab and the package that bring it
    "hydra/launcher=joblib": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "hydra/launcher=submitit_local": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=submitit_slurm": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=ray": ("ray", "hydra_plugins.hydra_ray_launcher"),
    "hydra/sweeper=optuna": ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
}
KINDS = {  # the plugins' classes; a user's own option such as hydra/launcher=cluster may be one of these
    "BasicLauncher": "basic",
    "BasicSweeper": "basic",
    "JoblibLauncher": "joblib",
    "LocalLauncher": "submitit_local",
    "SlurmLauncher": "submitit_slurm",
    "RayLauncher": "ray",
    "OptunaSweeper": "optuna",
}
YEAR = 365 * 24 * 60  # minutes
REQUEUES = 100
TRIALS = "hydra.sweeper.n_trials"


def machinery(overrides: Sequence[str], extra_dir: Path | None = None) -> tuple[str, str]:
    """Return the kinds of launcher and sweeper of a sweep whose jobs share `overrides`, such as ("joblib", "basic").

    Errors: EnvironmentFault where a package is missing that an extra of bnlab would bring.
    """
    if plain_hydra(overrides, extra_dir):
        return "basic", "basic"
    try:
        hydra = compose(overrides, True, extra_dir).hydra
    except ConfigError as error:
        for option, (extra, package) in EXTRAS.items():
            if str(error).startswith(option) and not _installed(package):
                raise EnvironmentFault(f"{option}: is not installed\npip install 'bnlab[{extra}]'") from error
        raise
    kinds = [
        KINDS.get(str(hydra[part].get("_target_")).rpartition(".")[2], hydra.runtime.choices[f"hydra/{part}"])
        for part in ("launcher", "sweeper")
    ]
    if kinds[1] == "optuna" and hydra.sweeper.storage is not None and _major("optuna") == 2 <= _major("sqlalchemy"):
        raise EnvironmentFault(
            f"hydra.sweeper.storage={hydra.sweeper.storage}: Optuna 2 cannot store a study with SQLAlchemy 2\n"
            "pip install 'sqlalchemy<2' 'alembic<1.20', or omit the storage"
        )
    return kinds[0], kinds[1]


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of what stands before the dot
        return False


def _major(package: str) -> int:
    try:
        return int(version(package).partition(".")[0])
    except PackageNotFoundError:
        return 0


# ---------------------------------------------------------------- what is set for a launcher


@dataclass(frozen=True)
class Settings:
    """How a launcher is to be called, and what comes of it on this machine."""

    lines: tuple[str, ...] = ()  # overrides that all jobs share, with bnlab's of Hydra's own keys
    at_once: int | None = None  # jobs at once; None on machines of a cluster
    threads: int = 1  # for each job that does not say itself
    trials: int | None = None  # of a search
    crowded: str = ""  # a warning where jobs would fight for the cores


def settings(
    overrides: Sequence[str],
    launcher: str,
    sweeper: str,
    jobs: int,
    threads: int | None,
    extra_dir: Path | None = None,
    own: Path | None = None,
) -> Settings:
    """Return what bnlab sets for `jobs` jobs of `threads` threads each (None: as many as there are cores for).

    What a user sets, in `overrides` that all jobs share or in a file, stays. Jobs of one machine share its cores
    evenly. `own` is a new folder for what submitit writes, and unpickles.
    """
    from omegaconf import OmegaConf

    given = list(overrides)
    config = compose(given, True, extra_dir)
    as_written = OmegaConf.to_container(config.hydra, resolve=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    trials = OmegaConf.select(config, TRIALS) if sweeper != "basic" else None
    wanted = _wanted(launcher, sweeper, trials or jobs, threads, cores, own)
    named = {line.partition("=")[0].strip().lstrip("+~") for line in given}
    # a key that still has the plugin's own default was set by nobody
    lines = [
        f"++{key}={ours}"
        for key, (default, ours) in wanted.items()
        if key not in named and _value(as_written, key) == default
    ]
    given += lines
    at_once = _at_once(launcher, compose(given, True, extra_dir), threads or 1, cores)
    if at_once is None:
        return Settings(tuple(given), trials=trials)
    at_once = max(1, min(at_once, trials or jobs))
    each = max(1, cores // at_once)
    used = threads or _given_threads() or each
    crowded = at_once > 1 and at_once * used > cores
    return Settings(
        tuple(given),
        at_once,
        each,
        trials,
        f"warning: {at_once} jobs at once with {used} threads each on {cores} cores slow each other down" * crowded,
    )


def _wanted(
    launcher: str, sweeper: str, jobs: int, threads: int | None, cores: int, own: Path | None
) -> Mapping[str, tuple[object, object]]:
    """Return key -> (the plugin's default, bnlab's)."""
    at_once = max(1, min(jobs, cores // (threads or 1)))
    init, remote = "hydra.launcher.ray.init", "hydra.launcher.ray.remote"
    by_launcher: dict[str, dict[str, tuple[object, object]]] = {
        "joblib": {
            "hydra.launcher.n_jobs": (-1, at_once),
            "hydra.launcher.batch_size": ("auto", 1),  # or a long job waits behind others while a core is free
        },
        "submitit_local": {
            # After an hour it would end each job and start it again; --timeout is what limits a job.
            "hydra.launcher.timeout_min": (60, YEAR),
        },
        "submitit_slurm": {
            # A job that reaches its time limit is requeued and goes on from its checkpoint.
            "hydra.launcher.max_num_timeout": (0, REQUEUES),
            "hydra.launcher.cpus_per_task": (None, threads or "null"),
        },
        "ray": {
            f"{remote}.num_cpus": (None, threads or 1),
            f"{remote}.max_retries": (None, 0),  # or a job whose process died is done four times unseen
            # A local Ray would start a web server and print its own log among the results.
            f"{init}.include_dashboard": (None, "false"),
            f"{init}.log_to_driver": (None, "false"),
            f"{init}.configure_logging": (None, "false"),
            f"{init}.logging_level": (None, "ERROR"),
        },
    }
    wanted = by_launcher.get(launcher, {})
    if own is not None:  # a sweep's folder, which is the plugin's choice, may come from anywhere
        wanted["hydra.launcher.submitit_folder"] = ("${hydra.sweep.dir}/.submitit/%j", quoted(own / "%j"))
    if sweeper == "optuna":
        wanted |= {
            "hydra.sweeper.direction": ("minimize", "maximize"),  # jobs return validation accuracy
            # Trials are chosen by what those before came to: no more at a time than keep the cores busy.
            "hydra.sweeper.n_jobs": (2, 1 if launcher == "basic" else at_once),
        }
    return wanted


def _value(tree: Any, key: str) -> Any:
    """Return what `key`, such as hydra.launcher.n_jobs, has in the tree of Hydra's own keys; None without it."""
    for name in key.split(".")[1:]:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return getattr(tree, "name", tree)  # of an enum


def _at_once(launcher: str, config: DictConfig, threads: int, cores: int) -> int | None:
    """Return how many jobs run at once on this machine; None where they run on others."""
    own = config.hydra.launcher
    if launcher == "basic":
        return 1
    if launcher == "joblib":
        return int(own.n_jobs) if own.n_jobs > 0 else cores + 1 + int(own.n_jobs)
    if launcher == "submitit_local":  # which would start all of them; `supervisor.Task` makes them wait
        return cores // threads
    if launcher == "ray" and own.ray.init.get("address") is None:
        return int((own.ray.init.get("num_cpus") or cores) / own.ray.remote.num_cpus)
    return None


def _given_threads() -> int | None:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else None


# ---------------------------------------------------------------- the calls


def search(task: Task, chosen: Settings, overrides: Sequence[str], folder: Path, extra_dir: Path | None = None) -> None:
    """Let a sweeper that chooses jobs while it goes on have its way below `folder`."""
    from bnlab.config import hydra_session

    _prepare_process(chosen)
    with hydra_session.session(extra_dir):
        if find_spec("optuna") is not None:
            import_module("optuna.logging").set_verbosity(logging.WARNING)  # its plugin has imported it by now
        plain = [line for line in overrides if line not in chosen.lines]
        lines = [*plain, *chosen.lines, "hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(folder)}"]
        hydra_session.search(lines, task)


def distribute(task: Task, chosen: Settings, folder: Path, names: Sequence[str], extra_dir: Path | None = None) -> None:
    """Let Hydra's launcher call `task` once for each of `names`, which become the jobs' `hydra.sweep.subdir`."""
    from bnlab.config import hydra_session

    _prepare_process(chosen)
    with hydra_session.session(extra_dir) as loader:
        lines = [*chosen.lines, "hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(folder)}"]
        launcher = hydra_session.launcher(loader, hydra_session.composed(loader, lines, True), task)
        launcher.launch([[f"hydra.sweep.subdir={quoted(name)}"] for name in names], initial_job_idx=0)


def _prepare_process(chosen: Settings) -> None:
    """Set what launchers and their processes read from this one: threads for each job, and silence."""
    if chosen.at_once is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(chosen.threads))
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # or a local Ray leaves a token in the home folder
    logging.getLogger("hydra_plugins").addHandler(logging.NullHandler())  # what it says, the summary does


def quoted(text: object) -> str:
    """Return text as an override's value that means these very characters."""
    plain = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(text))
    return f"'{plain.replace('${', chr(92) + '${')}'"


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
