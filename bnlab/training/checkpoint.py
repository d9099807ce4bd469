"""Checkpoints: whole or absent, with their SHA-256, the previous one kept, never unpickled.

checkpoint.pt        the newest          checkpoint.prev.pt   the one before
checkpoint.sha256    the digests of both, written before the newest is renamed into place

A single file of weights, such as a recalibrated model, has its digest in `<file>.sha256`, as `sha256sum` writes it.
Whichever is read: a regular file of bounded size, which cannot come to more in memory than it has on the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy._core import multiarray

from bnlab.errors import RecordError
from bnlab.record.evaluations import CURRENT, DIGESTS, LARGEST_DIGESTS, PREVIOUS
from bnlab.record.new_weights import check_new_file, digest_beside
from bnlab.record.plain_files import cannot_write, open_plain, read_plain, write_bytes

LARGEST = 4 * 2**30  # bytes of a checkpoint, a thousand million float32 weights; bnlab's own have some millions
OTHERS = {".npy'": "arrays of numpy.savez", "/constants.pkl'": "TorchScript"}  # archives of another kind, by a name
HEADS = {  # how files begin that hold no weights that torch reads
    b"version https://git-lfs": "a Git LFS pointer, in place of the file: git lfs pull",
    b"<": "a page of HTML, as a failed download leaves",
    b"\x1f\x8b": "gzip: unpack it first",
    b"\x89HDF": "HDF5, as of Keras",
    b"\x93NUMPY": "an array of numpy.save",
}
WAYS_OUT = "save model.state_dict() alone, or let the factory load the file: omit --checkpoint"


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
    if not present(folder):
        raise RecordError(
            f"{folder}: its checkpoint was removed, or it was never written\n"
            f"train it again by `bnlab train` with the settings that `bnlab show {folder}` has"
        )
    known, wrong = _known_digests(folder), []
    for path in (folder / CURRENT, folder / PREVIOUS):
        try:
            state = read_state(path, known)
        except RecordError as error:
            wrong.append(str(error))
            continue
        for reason in wrong:
            warn(f"{reason}; going on from {path.name}")
        return state
    raise RecordError(f"no checkpoint can be read: {'; '.join(wrong)}")


def read_state(path: Path, known: Collection[str] | None = None, *, follow: bool = False) -> dict[str, Any]:
    """Return what torch saved in a file, read as tensors and plain values only (`weights_only`).

    `known`: the digests that the file may have; `follow`: it may be a link, the user has named it.
    Errors: RecordError for what is no regular file, is larger than LARGEST, has another digest, would unpack to more
    than it is, would run code or holds no dictionary.
    """
    try:
        with open(open_plain(path.resolve() if follow else path, os.O_RDONLY), "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > LARGEST:
                raise RecordError(f"{path}: refused ({size / 2**30:,.1f} GiB, at most {LARGEST >> 30} are read)")
            if known is not None and hashlib.file_digest(file, "sha256").hexdigest() not in known:
                raise RecordError(f"{path}: sha256 differs")
            file.seek(0)
            head = file.read(24)
            if path.suffix != ".safetensors" and (kind := next((HEADS[h] for h in HEADS if head.startswith(h)), None)):
                raise RecordError(f"{path}: refused ({kind})")
            if head.startswith(b"PK"):
                with zipfile.ZipFile(file) as archive:
                    if kind := next((kind for part, kind in OTHERS.items() if part in str(archive.namelist())), None):
                        raise RecordError(f"{path}: refused ({kind})")
                    if sum(entry.file_size for entry in archive.infolist()) > size:  # torch compresses nothing
                        raise RecordError(f"{path}: refused (unpacks to more than its {size:,} bytes)")
            file.seek(0)
            state = _foreign(file, path) if follow else torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror or error}") from error
    except RecordError:
        raise
    except (zipfile.BadZipFile, EOFError) as error:
        raise RecordError(f"{path}: is damaged or incomplete") from error
    except Exception as error:  # torch raises many kinds for a file that it will not read
        raise RecordError(f"{path}: refused ({_why(error)})") from error
    if not isinstance(state, dict):
        raise RecordError(f"{path}: refused (holds a {type(state).__name__})")
    return state


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
    beside, known = digest_beside(path), None
    try:
        if os.path.lexists(beside):  # the user has named the file, so links are followed
            known = read_plain(beside.resolve(), LARGEST_DIGESTS).decode().split()[:1] or None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{beside}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        return read_state(path, known, follow=True)
    except RecordError as error:
        if isinstance(error.__cause__, (OSError, zipfile.BadZipFile, EOFError)):
            raise
        if "sha256" in str(error):
            raise RecordError(f"{error} from that in {beside.name}") from error
        raise RecordError(f"{error}\n{WAYS_OUT}") from error


def _foreign(file: BinaryIO, path: Path) -> Any:
    """Read a file of whatever training script; what such scripts save beside weights is made where it runs no code."""
    if path.suffix == ".safetensors":
        import safetensors.torch  # of the extra safetensors

        return safetensors.torch.load(file.read())
    numbers = [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"]
    arrays = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")
    ]
    paths = [(PurePosixPath, f"pathlib.{kind}") for kind in ("PosixPath", "_local.PosixPath")]
    with torch.serialization.safe_globals([argparse.Namespace, np.dtype, np.ndarray, *numbers, *arrays, *paths]):
        return torch.load(file, map_location="cpu", weights_only=True)


def _why(error: Exception) -> str:
    """Say why a file was not read, from what was raised."""
    if isinstance(error, ModuleNotFoundError):
        return "safetensors is not installed: pip install 'bnlab[safetensors]'"
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    text = (LookupError, ValueError, TypeError, AttributeError)  # its letters, read as what a pickle is to do
    if isinstance(error, (pickle.UnpicklingError, RuntimeError, *text)) and foreign is None:
        return "no file of tensors that torch.save wrote"
    return type(error).__name__ if foreign is None else f"it holds {foreign[1]}, and to make one runs its code"


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
