"""Downloads with the standard library: resumed, checked against the published checksum, unpacked by atomic renames.

A file under its final name is whole. What is on its way is called `.part` (a download, kept to go on from) or `.tmp`
(an unpacked file, never kept).
"""

from __future__ import annotations

import gzip
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bnlab.data.dataset import datasets
from bnlab.data.sources import Archive, File, Source, md5_of
from bnlab.errors import OF_THE_PATH, ConfigError, EnvironmentFault, did_you_mean

Report = Callable[[int, int], None]

CHUNK = 1 << 18
ATTEMPTS = 3  # at one mirror, as long as each of them brings something
LONGEST_SIZE = 18  # digits of a Content-Length; Python refuses to read those of 4,300
LARGEST = 1 << 30  # bytes that a file of no published size may unpack to


class _Failed(Exception):
    """One attempt at one mirror came to nothing; the message says why."""


class _CutOff(_Failed):
    """The server ended the connection early; what came is kept."""


def fetch(
    name: str,
    root: str | Path,
    mirror: str | None = None,
    timeout: float = 20.0,
    report: Report | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> Path:
    """Download what is missing of a data set, unpack it in torchvision's layout, and return the root.

    The published mirrors are tried in order; `mirror`, the URL of a folder, replaces them. `timeout` in seconds holds
    for connecting and for every wait for more bytes (looking up the name is up to the system). `report(bytes so far,
    bytes in all)` is called as they come; `waiting()` once where another process fetches the same set: it has its turn
    first. Archives stay beside the unpacked files, as torchvision leaves them. One that was put there by hand is used
    if it holds the published files, however it was packed, and is kept until another is there.
    Errors: ConfigError if there is nothing to download under that name; EnvironmentFault if no mirror delivers, if
    there is no space, or if the folder cannot be written. Bytes with a wrong checksum are removed.
    """
    source = _source(name)
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise ConfigError(f"mirror={mirror}: must begin with http:// or https://")
    base = Path(root)
    if source.status(base).state == "present":
        return base
    try:
        with _alone(base, name, waiting):
            todo = [archive for archive in source.archives if any(file.fault(base) for file in archive.files)]
            total, before = sum(archive.size for archive in todo), 0
            for archive in todo:
                archive.path(base).parent.mkdir(parents=True, exist_ok=True)
            _check_space(todo, base)
            for archive in todo:
                if not _unpack_there(archive, base):
                    mirrors = (mirror,) if mirror else source.mirrors
                    _obtain(name, archive, base, mirrors, timeout, _offset(report, before, total))
                    _unpack(archive, base)
                before += archive.size
    except OSError as error:
        where = error.filename or base
        kind = ConfigError if error.errno in OF_THE_PATH else EnvironmentFault
        raise kind(f"{name}: cannot write {where}: {error.strerror or error}") from error
    return base


@contextmanager
def _alone(base: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the data set meanwhile; the lock of a process that died ends with it."""
    from filelock import FileLock, Timeout

    base.mkdir(parents=True, exist_ok=True)
    lock = FileLock(base / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _unpack_there(archive: Archive, base: Path) -> bool:
    """Unpack the archive that lies there, and return whether it holds the published files."""
    path = archive.path(base)
    if not path.is_file() or not (all(file.md5 for file in archive.files) or md5_of(path) == archive.md5):
        return False
    try:
        _unpack(archive, base)
    except (EnvironmentFault, EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile):
        return False
    return True


def _source(name: str) -> Source:
    if name in datasets:
        source = datasets[name].source
        if not source.archives:
            raise ConfigError(f"{name}: nothing to download: {source.origin}")
        return source
    known = [name for name in datasets if datasets[name].source.archives]
    raise ConfigError(f"{name}: no such data set{did_you_mean(name, known)}\nthere are: {', '.join(known)}")


def _offset(report: Report | None, before: int, total: int) -> Callable[[int], None]:
    return (lambda done: report(before + done, total)) if report is not None else (lambda done: None)


def _check_space(todo: list[Archive], base: Path) -> None:
    """Refuse to start what cannot be finished; a file whose size is not published counts as large as its archive."""
    needed = 0
    for archive in todo:
        part = _part(archive, base)
        there = part.stat().st_size if part.exists() else archive.size if archive.path(base).exists() else 0
        needed += max(archive.size - there, 0) + sum(file.size or archive.size for file in archive.files)
    free = shutil.disk_usage(base).free
    if needed > free:
        raise EnvironmentFault(f"no space in {base}: {needed:,} bytes needed, {free:,} free")


def _part(archive: Archive, base: Path) -> Path:
    path = archive.path(base)
    return path.with_name(f"{path.name}.part")


def _obtain(
    name: str, archive: Archive, base: Path, mirrors: tuple[str, ...], timeout: float, meter: Callable[[int], None]
) -> None:
    """Bring the archive under its final name, verified."""
    path, part = archive.path(base), _part(archive, base)
    failures = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{archive.name}"
        try:
            _persist(url, archive, part, timeout, meter)
        except _Failed as failure:
            failures.append(f"{url}: {failure}")
        else:
            part.replace(path)
            return
    there = "; what lies there is something else, and is kept" if path.exists() else ""
    raise EnvironmentFault(
        f"{name}: could not fetch {'; '.join(failures)}\n"
        f"wanted: {archive.name}, {archive.size:,} bytes, MD5 {archive.md5}, to lie at {path}{there}\n"
        "run it again to go on from what came, put the file there by hand, or use data=digits, which needs no download"
    )


def _persist(url: str, archive: Archive, part: Path, timeout: float, meter: Callable[[int], None]) -> None:
    """Download from one mirror, going on where the connection was cut off."""
    for _ in range(ATTEMPTS - 1):
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, archive, part, timeout, meter)
        except _CutOff:
            if part.stat().st_size <= before:
                raise
        else:
            return
    _transfer(url, archive, part, timeout, meter)


def _transfer(url: str, archive: Archive, part: Path, timeout: float, meter: Callable[[int], None]) -> None:
    """Download the rest of `part` and verify the whole; what fails the checksum is removed."""
    have = part.stat().st_size if part.exists() else 0
    kind = ""
    if have < archive.size:
        kind = _receive(url, archive, part, have, timeout, meter)
    size, md5 = part.stat().st_size, md5_of(part)
    if md5 == archive.md5:
        return
    part.unlink()
    if not have:
        raise _Failed(f"checksum differs: {size:,} bytes{kind} with MD5 {md5}; removed")
    _transfer(url, archive, part, timeout, meter)  # what lay there may have been at fault: once more from the start


def _receive(url: str, archive: Archive, part: Path, have: int, timeout: float, meter: Callable[[int], None]) -> str:
    """Append the bytes from `have` on, or write all if the server does not go on; return " of HTML" if it was that."""
    try:
        response = _open(url, have, timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # there is no such rest: what lies there is not this file
            part.unlink()
            return _receive(url, archive, part, 0, timeout, meter)
        raise _Failed(f"HTTP status {error.code}") from error
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise _Failed("the server sent another range than the one asked for")
        size = have if resumed else 0
        length = response.headers.get("Content-Length", "")
        whole = size + int(length) if length.isdecimal() and len(length) <= LONGEST_SIZE else None
        with part.open("ab" if resumed else "wb") as stream:
            meter(size)
            while size <= archive.size and (chunk := _chunk(response, timeout)):
                stream.write(chunk)
                size += len(chunk)
                meter(min(size, archive.size))
        if whole == archive.size and size < whole:
            raise _CutOff(f"cut off after {size:,} of {whole:,} bytes")
        return " of HTML" if response.headers.get_content_type() == "text/html" else ""


def _open(url: str, have: int, timeout: float) -> http.client.HTTPResponse:
    headers = {"User-Agent": "bnlab", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _Failed(f"no answer in {timeout:g} s") from error
        raise _Failed(f"no connection ({getattr(error.reason, 'strerror', None) or error.reason})") from error
    except TimeoutError as error:
        raise _Failed(f"no answer in {timeout:g} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Failed(f"no usable answer ({type(error).__name__})") from error
    if not isinstance(response, http.client.HTTPResponse):
        raise _Failed("the server redirects to another kind of address")
    return response


def _chunk(response: http.client.HTTPResponse, timeout: float) -> bytes:
    try:
        return response.read1(CHUNK)
    except TimeoutError as error:
        raise _Failed(f"stalled: nothing came for {timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutOff(f"the connection broke ({type(error).__name__})") from error


def _unpack(archive: Archive, base: Path) -> None:
    """Write the archive's files; only the names expected are taken, and none from inside the archive is followed."""
    path = archive.path(base)
    left = {file.path: file for file in archive.files}
    for name, stream in _members(path, archive):
        if (file := left.pop(name, None)) is not None:
            with stream:
                _write(stream, file, base)
    if left:
        raise EnvironmentFault(f"{path}: holds no {', '.join(left)}")


def _members(path: Path, archive: Archive) -> Iterator[tuple[str, IO[bytes] | gzip.GzipFile]]:
    if not path.name.endswith(".tar.gz"):
        with gzip.open(path) as unpacked:
            yield archive.files[0].path, unpacked
        return
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isreg() else None
            if stream is not None:
                yield member.name, stream


def _write(stream: IO[bytes] | gzip.GzipFile, file: File, base: Path) -> None:
    target = base / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    left = (LARGEST if file.size is None else file.size) + 1  # one too many is enough to tell
    try:
        with temporary.open("wb") as out:
            while chunk := stream.read(min(CHUNK, left)):
                out.write(chunk)
                left -= len(chunk)
        if wrong := file.wrong(temporary):
            raise EnvironmentFault(f"{target}: {wrong} after unpacking")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
