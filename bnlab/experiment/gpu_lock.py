"""One job on a GPU at a time: a lock for each device, held while a job trains.

Jobs of one user that run side by side need not know of each other: those of joblib or submitit, or of several command
lines. Each holds a kernel lock (flock) on a file that is called after its device; one that finds none free waits. The
lock of a process that died ends with it, however it died, so nothing is ever left to be cleaned up. Devices are told
apart by their UUID, because their numbers change with CUDA_VISIBLE_DEVICES. Nothing in here knows of CUDA.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from bnlab.errors import EnvironmentFault
from bnlab.record.plain_files import cannot_write, open_plain
from bnlab.training.job import Stop

LOOK_SECONDS = 0.2  # between two looks for a free device


def lock_folder() -> Path:
    """Return the folder of this user's locks, made where it is missing.

    It lies in the temporary folder, which all sessions of a user share; XDG_RUNTIME_DIR is not set in all of them and
    goes away with the last login. Errors: EnvironmentFault where it cannot be made, or where others could reach it.
    """
    path = Path(tempfile.gettempdir()) / f"bnlab-{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        about = path.lstat()
    except OSError as error:
        raise cannot_write(path, error) from error
    if wrong := _wrong(about):
        raise EnvironmentFault(
            f"{path}: {wrong}; the locks on GPUs lie there, in a folder that is yours alone\n"
            "remove it, or set TMPDIR to another folder for all your jobs"
        )
    return path


def _wrong(about: os.stat_result) -> str:
    if stat.S_ISLNK(about.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(about.st_mode):
        return "is not a folder"
    if about.st_uid != os.getuid():
        return f"belongs to another user ({about.st_uid})"
    mode = stat.S_IMODE(about.st_mode)
    return f"is open to others (mode {mode:04o})" if mode & 0o077 else ""


@contextmanager
def claimed(names: Sequence[str], folder: Path, stop: Stop, waiting: Callable[[], None]) -> Iterator[int]:
    """Hold the first of the devices `names` that is free, or the first that becomes so; yield its place in `names`.

    `waiting` is called once if that takes a while. Raises KeyboardInterrupt when `stop` is requested meanwhile.
    Errors: EnvironmentFault.
    """
    stop.check()
    free, looks = _first_free(names, folder), 1
    while free is None:
        looks += 1
        if looks == 3:  # `held` locks for a moment too
            waiting()
        time.sleep(LOOK_SECONDS)
        stop.check()
        free = _first_free(names, folder)
    place, lock = free
    with lock:
        try:
            yield place
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a child of this process may have inherited the open file


def held(name: str, folder: Path) -> bool:
    """Return whether a job holds the device. Errors: EnvironmentFault."""
    with _opened(name, folder) as lock:
        return not _locked(lock, fcntl.LOCK_SH)


def _first_free(names: Sequence[str], folder: Path) -> tuple[int, FileIO] | None:
    for place, name in enumerate(names):
        lock = _opened(name, folder)
        if _locked(lock, fcntl.LOCK_EX):
            return place, lock
        lock.close()
    return None


def _opened(name: str, folder: Path) -> FileIO:
    path = folder / f"gpu-{name}.lock"
    try:
        return FileIO(open_plain(path, os.O_RDWR | os.O_CREAT), "r+")
    except OSError as error:
        raise cannot_write(path, error) from error


def _locked(lock: FileIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise EnvironmentFault(
            f"the locks on GPUs need a file system with flock: {error.strerror}\nset TMPDIR to a folder on a local disk"
        ) from error
    return True
