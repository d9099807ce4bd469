"""Every error a user can meet, as one tree; the class decides the exit code.

BnlabError
├── ConfigError          2  the command line or a configuration is wrong; nothing was started
│   └── IncompatibleError      2  a strategy does not fit the rest of the configuration
└── EnvironmentFault     1  the machine is at fault: device, disk, permissions, missing package
    ├── DataError        1  a data set is missing, damaged or cannot be fetched
    └── RecordError      1  a run folder cannot be read or written
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BnlabError(Exception):
    """A message for the user in up to three lines: what, where, what to do."""

    exit_code = 1


class ConfigError(BnlabError):
    """The command line or a configuration is wrong; nothing was started."""

    exit_code = 2


class IncompatibleError(ConfigError):
    """A strategy does not fit the model or the batch it would get; each may be right elsewhere."""


class EnvironmentFault(BnlabError):
    """The machine, not the configuration, is at fault."""


class DataError(EnvironmentFault):
    """A data set is missing, damaged or cannot be fetched."""


class RecordError(EnvironmentFault):
    """A run folder cannot be read or written."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the closest of `known`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def count_of(number: int, what: str) -> str:
    """Return `1 run`, `2 runs`, `3 batches`."""
    return f"{number:,} {what}{'' if number == 1 else 'es' if what.endswith(('ch', 's')) else 's'}"
