"""A folder that is there whole or not at all: filled beside its place, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from bnlab.errors import ConfigError
from bnlab.record.plain_files import beside_of, cannot_write, lock, remove_leftovers


def must_be_free(place: Path, replaced: Collection[str] | None = None) -> None:
    """Raise ConfigError when something is at `place`, were it a link that leads nowhere.

    `replaced`: a folder may be there that holds nothing but files of these names, in folders.
    """
    if not os.path.lexists(place):
        return
    if replaced is None:
        raise ConfigError(f"{place} exists\nchoose another place with --out, or replace an earlier export with --force")
    inside = [os.path.join(at, name) for at, _, names in os.walk(place) for name in names]
    links = [path for path in (place, *place.rglob("*")) if path.is_symlink()]
    if links or not place.is_dir() or not {os.path.basename(path) for path in inside} <= set(replaced):
        raise ConfigError(f"{place}: holds more than an earlier export\nchoose another place with --out")


@contextlib.contextmanager
def fresh_place(place: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside `place` to fill; it becomes `place` at the end, or goes away with what failed.

    `replace`: a folder that is there goes away then. Errors: EnvironmentFault for what the system refuses meanwhile.
    """
    remove_leftovers(place)
    beside, held = beside_of(place), None
    absent = [parent for parent in place.parents if not parent.exists()]
    try:
        beside.mkdir(parents=True)
        with contextlib.suppress(OSError):  # a folder cannot be opened on Windows
            held = os.open(beside, os.O_RDONLY)
            lock(held)
        yield beside
        if replace and place.is_dir():
            os.rename(place, old := beside_of(place))
            os.rename(beside, place)
            shutil.rmtree(old)
        else:
            must_be_free(place)  # still
            os.rename(beside, place)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in absent:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise cannot_write(place, error) from error
        raise
    finally:
        if held is not None:
            os.close(held)
