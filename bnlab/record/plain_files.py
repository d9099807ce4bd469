"""Files that are complete or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnlab.errors import OF_THE_PATH, BnlabError, ConfigError, EnvironmentFault

# Windows, where runs are compared and none is trained, has the last one only.
_CAREFULLY = sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Put `content` at `path` in one step; after a crash the old or the new content is there, never a part.

    Without `durable` that holds as long as the machine has power, and many files are written ten times as fast.
    Errors: EnvironmentFault naming the path when the disk is full or the place cannot be written.
    """
    beside = beside_of(path)
    try:
        with open(open_plain(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            lock(file.fileno())
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def beside_of(path: Path) -> Path:
    """Return a hidden place beside `path`, of a name that nobody else has, for what is to be renamed to it."""
    path = path if path.name else path.absolute()  # the working directory has a name, too
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def lock(file: int) -> bool:
    """Lock an open file or folder as long as it is open; return whether nobody else has. Errors: OSError."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed left beside `path`; those that still work there hold a lock."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            file = os.open(left, os.O_RDONLY | _CAREFULLY)
            try:
                if lock(file):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(file)


def open_plain(path: Path | str, flags: int) -> int:
    """Open a regular file with `flags` and return its descriptor; a link is not followed, a FIFO not waited for.

    A run folder may come from anywhere, and writing through a link in it would reach any file. Errors: OSError.
    """
    file = os.open(path, flags | _CAREFULLY, 0o644)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def read_plain(path: Path | str, largest: int | None = None) -> bytes:
    """Return the content of a regular file, opened as `open_plain` does. Errors: OSError, as for one of more bytes."""
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if largest is not None and size > largest:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read(size)  # no more, should it grow


def write_json(path: Path, value: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write `value` as JSON, a line a key, in one step; a number that is not finite is refused, not written as NaN."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(item, allow_nan=False, ensure_ascii=False)}" for key, item in value.items()
    ]
    write_bytes(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode(), durable=durable)


def cannot_write(path: Path, error: OSError) -> BnlabError:
    """Return the user's message for an operating-system error on `path`: a ConfigError where another path would do."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        inside = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
        return EnvironmentFault(f"cannot write {path}: {inside} is no folder\nmove it away, or choose another place")
    if error.errno in OF_THE_PATH:
        return ConfigError(f"cannot write {path}: {error.strerror}\nchoose another place")
    return EnvironmentFault(f"cannot write {path}: {error.strerror or error}\ncheck free space and permissions there")
