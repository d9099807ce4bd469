"""Where a new file of weights may lie: told without torch, before anything is read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bnlab.errors import ConfigError
from bnlab.record.evaluations import CURRENT, PREVIOUS
from bnlab.record.plain_files import cannot_write, remove_leftovers


def check_new_file(path: Path) -> None:
    """Refuse a place where `save_file` would meet a file, or cannot write. Errors: ConfigError, EnvironmentFault."""
    if os.path.lexists(path) or os.path.lexists(digest_beside(path)):
        taken = path if os.path.lexists(path) else digest_beside(path)
        raise ConfigError(f"{taken}: exists already, and nothing is written over\nname another file by --out")
    if path.name in (PREVIOUS, CURRENT):
        raise ConfigError(f"{path}: is a name that training writes to\nname another file by --out")
    if not path.parent.exists():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist\nmake it, or name another by --out")
    remove_leftovers(path)
    remove_leftovers(digest_beside(path))
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".sha256.tmp"):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def digest_beside(path: Path) -> Path:
    """Return where the digest of a single file lies."""
    return path.with_name(f"{path.name}.sha256")
