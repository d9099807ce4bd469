"""Files that are complete or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnlab.errors import EnvironmentFault


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step; after a crash the old or the new content is there, never a part.

    Errors: EnvironmentFault naming the path when the disk is full or the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON, a line a key, in one step; a number that is not finite is refused, not written as NaN."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(item, allow_nan=False, ensure_ascii=False)}" for key, item in value.items()
    ]
    write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def cannot_write(path: Path, error: OSError) -> EnvironmentFault:
    """Return the user's message for an operating-system error on `path`."""
    return EnvironmentFault(f"cannot write {path}: {error.strerror or error}\ncheck free space and permissions there")
