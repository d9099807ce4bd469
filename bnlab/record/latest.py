"""The folder of all runs, and what of it a word names: `latest`, `latest/3`, a name or the beginning of one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bnlab.errors import ConfigError

PLACE = "BNLAB_RUNS"  # the environment variable that names another folder of runs, for every command
STAMP = re.compile(r"\d{8}-\d{6}-")  # how names begin that `fresh_folder` gives
LATEST = "latest"
POOL = "pool"  # in the folder of all runs: those of claims and searches, which nobody compares with one another
OF_CLAIMS = "claims"  # in the folder of all runs: what claims came to, and no runs
MOST_SHOWN = 6  # of the candidates for a word


def runs_folder() -> Path:
    """Return the folder of all runs, relative to the working directory."""
    return Path(os.path.expanduser(os.environ.get(PLACE) or "runs"))


def no_runs() -> ConfigError:
    """Return what to say where the folder of all runs is not there yet."""
    return ConfigError(f"{runs_folder()}: no runs yet; `bnlab train` makes one")


def of_claims() -> str:
    """Return where the runs of claims are, as the end of a way out; empty where there are none."""
    pool = runs_folder() / POOL
    return f"; runs of claims are in {pool}, and `bnlab claim show NAME` has a verdict" if pool.is_dir() else ""


def names(base: Path) -> list[str]:
    """Return the folders in `base`, links left out: those that bnlab named from the newest on, then the others."""
    try:
        with os.scandir(base) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []  # reading it says why
    return sorted(found, key=lambda name: (bool(STAMP.match(name)), name), reverse=True)


def short_name(name: str) -> str:
    """Return the name of a sweep or run without its time: `demo-sweep-a1b2c3`."""
    return STAMP.sub("", name, count=1)


def name_of(folder: Path) -> str:
    """Return the shortest word that `find_run` takes for a folder: its short name where it lies among the runs."""
    base, sweep = runs_folder(), folder.parent
    if sweep == base:
        return short_name(folder.name)
    return f"{short_name(sweep.name)}/{folder.name}" if sweep.parent == base else str(folder)


def find_run(word: str | os.PathLike[str]) -> Path:
    """Return the folder that a word names: a path that exists; else of the runs the latest, a name, or the only one
    whose name, short name or id begins with it. `/3` behind it is its job 3; `latest/3` is of the latest sweep.

    What names nothing stays a path, of which a reader says that it does not exist. Errors: ConfigError for a word that
    begins the names of several, with these, for what is no word, and for the latest where there is no run.
    """
    if not isinstance(word, (str, os.PathLike)):
        raise ConfigError(f'{type(word).__name__}: is no folder or name of a run\ngive its path, or "latest"')
    word = os.fspath(word)
    base, (head, _, rest) = runs_folder(), word.partition("/")
    if os.path.lexists(word) or not head:
        return Path(word)
    if head == LATEST:
        if not os.path.lexists(base):
            raise no_runs()
        found = [name for name in _dated(base) if not rest or not _is_run(base / name)][:1]
        if not found:
            raise _only_of_claims(base) or ConfigError(
                f"{word}: there is no {'sweep' if rest else 'run or sweep'} in {base} yet\n`bnlab train` makes one"
            )
    else:
        known = names(base)
        ways = {name: (name, short_name(name), name.rpartition("-")[2]) for name in known}
        found = [name for name in known if name == head]
        found = found or [name for name in known if any(way.startswith(head) for way in ways[name])]
    if len(found) > 1:
        others = ", …" if len(found) > MOST_SHOWN else ""
        raise ConfigError(
            f"{word}: begins {len(found)} names in {base}\nthere are: {', '.join(found[:MOST_SHOWN])}{others}"
        )
    return base / found[0] / rest if found else Path(word)


def complete_run(incomplete: str) -> list[str]:
    """Return the names that may follow `incomplete`, as `find_run` takes them; after a name and `/` its jobs."""
    head, slash, rest = incomplete.rpartition("/")
    if slash:
        try:
            jobs = names(find_run(f"{head}/0").parent)
        except ConfigError:
            return []
        return [f"{head}/{name}" for name in reversed(jobs) if name.isdigit() and name.startswith(rest)]
    return [name for name in (LATEST, *map(short_name, names(runs_folder()))) if name.startswith(incomplete)]


def latest(base: Path | None = None) -> tuple[list[Path], str | None]:
    """Return the latest sweep or bench, or the single runs that are later than it, and a line that says which.

    There is no line where nothing is left out. Folders that bnlab did not name have no age: if there are no others,
    it is all of `base` but what claims and searches made. Errors: ConfigError where there is nothing else.
    """
    base = base or runs_folder()
    dated = [base / name for name in reversed(_dated(base))]
    chosen = dated[-1:]
    if chosen and _is_run(chosen[0]):
        sweeps = [number for number, folder in enumerate(dated) if not _is_run(folder)]
        chosen = dated[sweeps[-1] + 1 if sweeps else 0 :]
    if error := _only_of_claims(base):
        raise error
    known = names(base)
    others = [base / name for name in known if name not in (POOL, OF_CLAIMS)]
    if not chosen:
        return ([base] if len(others) == len(known) else others), None
    if len(chosen) == len(known):
        return [base], None
    what = str(chosen[0]) if len(chosen) == 1 else f"{len(chosen)} single runs, {chosen[0]} to {chosen[-1]}"
    return chosen, f"the latest of {base}: {what} (--all: everything)"


def _only_of_claims(base: Path) -> ConfigError | None:
    """Return what to say where all that is in `base` was made by claims and searches."""
    known = names(base)
    if not known or {*known} - {POOL, OF_CLAIMS}:
        return None
    pool = f"; {base / POOL} as PATH takes all these runs" if POOL in known else ""
    return ConfigError(f"{base}: has only runs of claims and searches\n`bnlab claim report` shows verdicts{pool}")


def _dated(base: Path) -> list[str]:
    """Return what bnlab named in `base`, from the newest on, without what was left empty."""
    return [name for name in names(base) if STAMP.match(name) and any((base / name).iterdir())]


def _is_run(folder: Path) -> bool:
    return os.path.lexists(folder / "status.json")
