"""Files of a run read without trust: regular ones of a bounded size, without following links or waiting."""

from __future__ import annotations

import errno
import os
import stat

LARGEST_FILE = 8 * 2**20  # bytes; a summary with a thousand evaluations has 0.3 MB


class Unreadable(Exception):
    """Why a run folder is left out; never shown as a traceback."""


def read_bytes(path: str, largest: int = LARGEST_FILE) -> bytes:
    """Return the content of a regular file.

    Errors: FileNotFoundError; Unreadable for what is no plain file, cannot be opened or exceeds `largest` bytes.
    """
    name = os.path.basename(path)
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be opened ({error.strerror})"
        raise Unreadable(f"{name} {reason}") from error
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise Unreadable(f"{name} is not a regular file")
        if about.st_size > largest:
            raise Unreadable(f"{name} is larger than {largest / 2**20:g} MB")
        content = b""
        while len(content) < about.st_size and (more := os.read(file, about.st_size - len(content))):
            content += more
        return content
    except OSError as error:
        raise Unreadable(f"{name} cannot be read ({error.strerror})") from error
    finally:
        os.close(file)
