"""Every error a user can meet, as one tree; the class decides the exit code.

BnlabError
├── ConfigError          2  the command line or a configuration is wrong, or names what is not there
│   └── IncompatibleError      2  a strategy does not fit the rest of the configuration
├── DataError            1  a data set is not on this machine, or is damaged
├── RecordError          1  a run, or a file that should be of one, is damaged or does not fit
└── EnvironmentFault     1  the machine is at fault: device, disk, permissions, network, missing package
    └── BusyError        1  another process works on a run or a sweep

What has to be given otherwise is 2, and nothing was started; what is damaged or failed on its own is 1, as is a failed
job whatever its reason.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from typing import Any

OF_THE_PATH = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)  # another path would do
# where a message begins with what was given, and that is empty
_NOTHING = re.compile(r"((?:metric |--[\w-]+ )?)(?=: )")


class BnlabError(Exception):
    """A message for the user in up to three lines: what, where, what to do."""

    exit_code = 1

    def __str__(self) -> str:
        return _NOTHING.sub(r"\1''", said, count=1) if _NOTHING.match(said := super().__str__()) else said


class ConfigError(BnlabError):
    """The command line or a configuration is wrong, or names what is not there; nothing was started."""

    exit_code = 2


class IncompatibleError(ConfigError):
    """A strategy does not fit the model or the batch it would get; each may be right elsewhere."""


class DataError(BnlabError):
    """A data set is not on this machine, or is damaged."""


class RecordError(BnlabError):
    """A run, or a file that should be of one, is damaged or does not fit."""


class EnvironmentFault(BnlabError):
    """The machine, not what it was given, is at fault."""


class BusyError(EnvironmentFault):
    """Another process works on a run or a sweep."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the closest of `known`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def unknown(named: str, word: str, known: Iterable[str]) -> ConfigError:
    """Return the error of a word that is none of `known`."""
    known = list(known)
    return ConfigError(f"{named}: no such choice{did_you_mean(word, known)}\nthere are: {', '.join(known)}")


def texts_of(named: str, given: object) -> list[str]:
    """Return the texts that an argument in Python gives: one, or several of them. Errors: ConfigError."""
    texts: list[Any] = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{named}={given!r}: must be a text, or a list of texts")
    return texts


def brief(value: float) -> str:
    """Return a figure with two digits, and a whole part in full: `0.42`, `42`, `100`, `4,200`."""
    return f"{value:,.0f}" if 99.5 <= abs(value) < 1e6 else f"{value:.2g}"


def count_of(number: int, what: str) -> str:
    """Return `1 run`, `2 runs`, `3 batches`."""
    return f"{number:,} {what}{'' if number == 1 else 'es' if what.endswith(('ch', 's')) else 's'}"
