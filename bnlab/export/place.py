"""A folder that is there whole or not at all: filled beside its place, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bnlab.errors import ConfigError
from bnlab.record.plain_files import beside_of, cannot_write, lock, remove_leftovers


def must_be_free(place: Path) -> None:
    """Raise ConfigError when something is at `place`, were it a link that leads nowhere."""
    if os.path.lexists(place):
        raise ConfigError(f"{place} exists, and an export writes over nothing\nchoose another place with --out")


@contextlib.contextmanager
def fresh_place(place: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `place` to fill; it becomes `place` at the end, or goes away with what failed.

    Errors: EnvironmentFault for whatever the system refuses meanwhile.
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
