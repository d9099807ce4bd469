"""Checkpoints: whole or absent, with their SHA-256, the previous one kept, never unpickled.

checkpoint.pt        the newest          checkpoint.prev.pt   the one before
checkpoint.sha256    the digests of both, written before the newest is renamed into place

A single file of weights, such as a recalibrated model, has its digest in `<file>.sha256`, as `sha256sum` writes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bnlab.errors import ConfigError, RecordError
from bnlab.record.plain_files import cannot_write, read_plain, write_bytes

CURRENT, PREVIOUS, DIGESTS = "checkpoint.pt", "checkpoint.prev.pt", "checkpoint.sha256"
LARGEST_DIGESTS = 4096  # bytes


def save(folder: Path, state: dict[str, Any]) -> None:
    """Put `state` (tensors, numbers, text, lists, dicts) into `folder`; at any moment the old or the new one loads."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    current, previous = folder / CURRENT, folder / PREVIOUS
    # The list may name one that was never put in place, and the newest may be damaged: what lies there decides.
    newest = _digest_if_good(current)
    older = newest or _digest_if_good(previous)
    digests = [hashlib.sha256(content).hexdigest(), *([older] if older else [])]
    write_bytes(folder / DIGESTS, "\n".join(digests).encode() + b"\n")
    if newest:
        beside = folder / f".{PREVIOUS}.{os.getpid()}.tmp"
        try:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            os.link(current, beside)
            os.replace(beside, previous)
            with contextlib.suppress(FileNotFoundError):  # between two links to one file it does nothing
                beside.unlink()
        except OSError as error:
            raise cannot_write(previous, error) from error
    write_bytes(current, content)


def load(folder: Path, warn: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Return the newest checkpoint whose digest is right; `warn` is told why an older one is taken.

    Errors: RecordError naming each file and what is wrong with it. Only tensors and plain values are read
    (`weights_only`): a file that would run code is refused.
    """
    known, wrong = _known_digests(folder), []
    for path in (folder / CURRENT, folder / PREVIOUS):
        try:
            content = read_plain(path)
        except OSError as error:
            wrong.append(f"{path}: {error.strerror}")
            continue
        if hashlib.sha256(content).hexdigest() not in known:
            wrong.append(f"{path}: sha256 differs")
            continue
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that it will not read
            wrong.append(f"{path}: refused ({type(error).__name__})")
            continue
        if not isinstance(state, dict):
            wrong.append(f"{path}: refused (holds a {type(state).__name__})")
            continue
        for reason in wrong:
            warn(f"{reason}; going on from {path.name}")
        return state
    raise RecordError(f"no checkpoint can be read: {'; '.join(wrong)}")


def present(folder: Path) -> bool:
    """Return whether there is any checkpoint, good or damaged."""
    return any(os.path.lexists(folder / name) for name in (CURRENT, PREVIOUS))


def discard(folder: Path) -> None:
    """Remove the checkpoints of a run that begins anew; their tables are gone."""
    for name in (CURRENT, PREVIOUS, DIGESTS):  # at any moment what is left of them loads
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()


def load_file(path: Path) -> dict[str, Any]:
    """Return what a single file of weights holds; its digest is checked where `<file>.sha256` lies beside it.

    Errors: RecordError. Only tensors and plain values are read, as by `load`.
    """
    try:
        content = path.read_bytes()
        beside = digest_beside(path)
        known = beside.read_text().split()[:1] if beside.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if known and hashlib.sha256(content).hexdigest() not in known:
        raise RecordError(f"{path}: sha256 differs from that in {beside.name}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that it will not read
        raise RecordError(
            f"{path}: refused ({type(error).__name__})\nonly tensors and plain values are read; save model.state_dict()"
        ) from error
    if not isinstance(state, dict):
        raise RecordError(f"{path}: holds a {type(state).__name__}, not a state dict\nsave model.state_dict()")
    return state


def check_new_file(path: Path) -> None:
    """Refuse a place where `save_file` would meet a file, or cannot write. Errors: ConfigError, EnvironmentFault."""
    if os.path.lexists(path) or os.path.lexists(digest_beside(path)):
        taken = path if os.path.lexists(path) else digest_beside(path)
        raise ConfigError(f"{taken}: exists already, and nothing is written over\nname another file by --out")
    if path.name in (PREVIOUS, CURRENT):
        raise ConfigError(f"{path}: is a name that training writes to\nname another file by --out")
    if not path.parent.exists():
        raise ConfigError(f"{path}: the folder {path.parent} does not exist\nmake it, or name another by --out")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".sha256.tmp"):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def save_file(path: Path, state: Mapping[str, Any]) -> None:
    """Put `state` into a new file, with its digest in `<file>.sha256`; both are there in the end, or neither.

    Errors: as `check_new_file`.
    """
    check_new_file(path)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content, beside = buffer.getvalue(), digest_beside(path)
    try:
        write_bytes(beside, f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode())
        write_bytes(path, content)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def digest_beside(path: Path) -> Path:
    """Return where the digest of a single file lies."""
    return path.with_name(f"{path.name}.sha256")


def _digest_if_good(path: Path) -> str | None:
    """Return the digest of a checkpoint that `load` would take as whole; None where there is none."""
    try:
        digest = hashlib.sha256(read_plain(path)).hexdigest()
    except OSError:
        return None
    return digest if digest in _known_digests(path.parent) else None


def _known_digests(folder: Path) -> list[str]:
    try:
        return read_plain(folder / DIGESTS, LARGEST_DIGESTS).decode().split()
    except (OSError, UnicodeDecodeError):
        return []
