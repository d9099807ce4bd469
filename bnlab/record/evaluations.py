"""What a finished run came to under other settings of evaluation, without training again: `evaluations.json` beside it.

    {"schema": 1, "weights": SHA-256 of the checkpoint, "evaluations": {IDENTITY: {"config", "curve", "layers", ...}}}

IDENTITY is that of a run trained with these settings: of its configuration, its data and the version of bnlab; of a
recalibrated checkpoint it is the name of its file. The file goes with one checkpoint; where the run has another by now,
or the file cannot be read, it is as if it were not there.
"""

from __future__ import annotations

import array
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnlab.record.read_files import Unreadable, read_bytes

FILE = "evaluations.json"
CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"  # a run's checkpoints
DIGESTS = "checkpoint.sha256"  # of both, the newest first
LARGEST_DIGESTS = 4096  # bytes
# Settings that change no training, as they are without a word; what differs in them can be evaluated again.
SETTINGS: Mapping[str, Any] = {
    "eval.stats": "running",
    "eval.batch_size": 200,
    "eval.prior": 16.0,
    "eval.stride": 1,
    "eval.shifted": "none",
    "measure": "cheap",
}
RECALIBRATED = "recalibrated"  # a key of what a recalibrated checkpoint was evaluated to be: by which statistics
Evaluations = dict[str, dict[str, Any]]  # by identity


def with_settings(tree: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with some of SETTINGS changed; those that an older run lacks are as they were then.

    No evaluation reads meters, however often a training did.
    """
    changed = dict(tree) | {"eval": dict(tree["eval"])} | ({"measure_every": None} if "measure_every" in tree else {})
    for key, usual in SETTINGS.items():
        node, name = (changed["eval"], key[5:]) if key.startswith("eval.") else (changed, key)
        node[name] = change.get(key, node.get(name, usual))
    return changed


def weights_of(folder: Path | str) -> str:
    """Return the SHA-256 of a run's newest checkpoint; empty without one."""
    try:
        return read_bytes(f"{folder}/{DIGESTS}", LARGEST_DIGESTS).partition(b"\n")[0].decode()
    except (FileNotFoundError, Unreadable, UnicodeDecodeError):
        return ""


def read_evaluations(folder: Path | str) -> Evaluations:
    """Return the evaluations of a run's newest checkpoint that lie beside it."""
    try:
        tree = json.loads(read_bytes(f"{folder}/{FILE}"))
        if tree["schema"] != 1 or not tree["weights"] or tree["weights"] != weights_of(folder):
            return {}
        return {str(identity): _checked(entry) for identity, entry in tree["evaluations"].items()}
    except (FileNotFoundError, Unreadable, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _checked(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry whose figures are numbers. Errors: those of Python for what it is not."""
    config = {key: entry["config"][key] for key in SETTINGS} | {
        key: value for key, value in entry["config"].items() if key == RECALIBRATED
    }
    if not all(isinstance(value, (str, int, float)) for value in config.values()):
        raise TypeError
    curve = {name: None if value is None else float(value) for name, value in entry["curve"].items()}
    return {"config": config, "curve": curve, "layers": dict(entry["layers"]), "samples": dict(entry["samples"])}


def summary_of(trained: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a training with its last evaluation replaced; the ones before it are not known."""
    curve = {name: array.array("d", [math.nan if value is None else value]) for name, value in entry["curve"].items()}
    left = {"initial_share": {"share_left": 0.0}} if RECALIBRATED in entry["config"] else {}
    known = {"curve": curve, "layers": entry["layers"], "samples": entry["samples"]}
    return {**trained, **left, **known, "evaluated": True}
