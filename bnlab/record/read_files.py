"""Files of a run read without trust: what cannot be read is left out with the reason in words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from bnlab.record.plain_files import read_plain

LARGEST_FILE = 8 * 2**20  # bytes; a summary with a thousand evaluations has 0.3 MB


class Unreadable(Exception):
    """Why a run folder is left out; never shown as a traceback."""


def read_bytes(path: Path | str, largest: int = LARGEST_FILE) -> bytes:
    """Return the content of a regular file, as `read_plain` does. Errors: FileNotFoundError; Unreadable."""
    try:
        return read_plain(path, largest)
    except FileNotFoundError:
        raise
    except OSError as error:
        reasons = {
            errno.ELOOP: "is a symbolic link",
            errno.EINVAL: "is not a regular file",
            errno.EFBIG: f"is larger than {largest / 2**20:g} MB",
        }
        reason = reasons.get(error.errno or 0, f"cannot be read ({error.strerror})")
        raise Unreadable(f"{os.path.basename(path)} {reason}") from error
