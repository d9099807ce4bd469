"""Whether a record was made by this user: only then are the places that it names outside of its folder believed.

A record carries a signature, HMAC-SHA-256 over those places by a key in the user's home, made at the first run. What a
stranger sends cannot have it: its data are looked for only after the user has named them. No host, user or path of the
folder goes into it, so a folder may be moved or copied; on a machine with another home it counts as a stranger's.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bnlab.errors import RecordError
from bnlab.record.plain_files import read_plain

PLACES = {"root": "data", "path": ""}  # of `data`: the keys that name folders, and what they are without a word
KEY_BYTES = 32


def signature(places: object) -> str | None:
    """Return this user's signature of `places`, plain values; None where the home can hold no key."""
    try:
        key = _key()
    except (OSError, RuntimeError):  # RuntimeError: there is no home at all
        return None
    return hmac.new(key, json.dumps(places, sort_keys=True).encode(), "sha256").hexdigest()


def is_ours(found: object, places: object) -> bool:
    """Return whether `found` is this user's signature of `places`."""
    known = signature(places)
    return known is not None and hmac.compare_digest(str(found).encode(errors="replace"), known.encode())


def places_of(config: Mapping[str, object]) -> dict[str, object]:
    """Return what a configuration says of places outside of its run's folder, `data.root` and `data.path`."""
    data = config.get("data")
    return {f"data.{key}": data[key] for key in PLACES if key in data} if isinstance(data, Mapping) else {}


def check_places(folder: Path, config: Mapping[str, object], signed: object, given: Sequence[str]) -> None:
    """Refuse the record in `folder` if it leads out of it, is not `signed` by this user, and the user has not said so.

    `given`: the overrides of the command line. Errors: RecordError naming the places.
    """
    places = places_of(config)
    named = {line.partition("=")[0].strip().lstrip("+~") for line in given}
    usual = {f"data.{key}": value for key, value in PLACES.items()}
    strange = {key: value for key, value in places.items() if value != usual[key] and key not in named}
    if strange and not is_ours(signed, places):
        raise RecordError(
            f"{folder} names {' and '.join(f'{key}={value}' for key, value in strange.items())}, and is no record of "
            f"yours on this machine\ngive {' '.join(f'{key}=FOLDER' for key in strange)} if you know what lies there"
        )


def _key() -> bytes:
    """Return this user's key, made where it is missing. Errors: OSError; RuntimeError without a home."""
    base = os.environ.get("XDG_STATE_HOME", "")
    path = (Path(base) if os.path.isabs(base) else Path.home() / ".local/state") / "bnlab" / "key"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file, beside = tempfile.mkstemp(dir=path.parent)  # for this user only
        try:
            os.write(file, secrets.token_bytes(KEY_BYTES))
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(beside, path)
        finally:
            os.close(file)
            os.unlink(beside)
    key = read_plain(path, KEY_BYTES)
    if len(key) != KEY_BYTES:
        raise OSError(f"{path}: is no key")
    return key
