"""What a command line names to be examined, checked as far as that is possible without torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnlab.config import compose
from bnlab.config.files import groups
from bnlab.config.messages import meant_by
from bnlab.errors import ConfigError, did_you_mean
from bnlab.record.origin import check_places
from bnlab.record.read import read_documents

# What of a run's configuration may be set anew to examine it: where things lie, how and on how much it is examined.
ADJUSTABLE = ("data.root", "data.path", "eval.batch_size", "eval.probe_samples", "eval.prior", "trainer.device",
              "trainer.threads")  # fmt: skip
MODULE_KEYS = ("data", "model.input_norm", "seed", "eval.probe_samples", "eval.batch_size", "eval.prior",
               "trainer.accumulate", "trainer.channels_last", "trainer.device", "trainer.precision",
               "trainer.threads")  # fmt: skip  # what has a meaning for a module of the user's
OF_ONE = {"eval.batch_size": "recalibrate", "eval.prior": "shift"}  # the only command that reads it of one model
# What answers the question that a key asks of runs.
ANSWERS = {
    "eval.stats": 'the table "Statistics to evaluate with" of `bnlab probe` has all of them',
    "eval.batch_size": "`bnlab shift --batch-size N` evaluates in batches of N, data.batch_size=N is that of training, "
    'and the table "Statistics to evaluate with" of `bnlab probe` has the sizes from 1 to 256',
    "eval.shifted": "`bnlab shift --shift NAME --severity N` shifts the test images",
    "eval.prior": "`bnlab shift --stats mixed` reads it",
}


def check_target(
    targets: Sequence[str],
    module: str | None,
    weights: Path | None,
    data: str | None,
    key: str | None = None,
    output: str | None = None,
    command: str = "",
) -> None:
    """Refuse what cannot be `RUN [KEY=VALUE]...`, or overrides beside a module. Errors: ConfigError, RecordError.

    Also what the `command` that examines it does not read.
    """
    if key is not None and weights is None:
        raise ConfigError(f"--key {key}: only with --checkpoint, whose weights it names")
    if weights is not None and not weights.exists():
        raise ConfigError(f"{weights}: cannot be read: No such file or directory")
    if module is not None:
        keys_of_module(targets, command)
        if data is not None and data not in (known := groups()["data"]):
            raise ConfigError(f"data={data}: no such option{did_you_mean(data, known)}\nthere are: {', '.join(known)}")
        return
    if output is not None:
        raise ConfigError(f"--output {output}: only with --module; a run's model returns its logits alone")
    if data is not None:
        raise ConfigError(f"--data {data}: only with --module; a run knows its data\nset data.root=... if it has moved")
    if not targets or ("=" in targets[0] and not Path(targets[0]).exists()):
        raise ConfigError("RUN is missing\nname a run folder, such as runs/…/0, or your own model by --module")
    if Path(targets[0]).is_file():
        raise ConfigError(
            f"{targets[0]}: is a file, not the folder of a run\n"
            f"weights of your own model go with it: --module PACKAGE.MODULE:FACTORY --checkpoint {targets[0]}"
        )
    for other in targets[1:]:
        if "=" not in other:
            raise ConfigError(
                f"{other}: only overrides can follow RUN, such as data.root=...; one run is examined at a time"
            )
        _check_read(other, command, "a run")
    recorded(Path(targets[0]), targets[1:])


def recorded(folder: Path, overrides: Sequence[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the configuration of the run in a folder under `overrides`, and its summary.

    Errors: ConfigError, as for an override of what is not ADJUSTABLE, or when there is no run; RecordError.
    """
    status, summary = read_documents(folder)
    tree = summary.get("config") or status.get("config")
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{folder}: holds no configuration of a run\nname a run folder, such as runs/…/0")
    tree = compose.adjusted(tree, overrides, ADJUSTABLE)
    check_places(folder, tree, status.get("origin"), overrides)
    return tree, summary


def keys_of_module(overrides: Sequence[str], command: str = "") -> list[str]:
    """Return the keys of overrides that go with a module, and that `command` reads. Errors: ConfigError for others."""
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if "=" not in override:
            raise ConfigError(f"{override}: with --module only overrides are allowed, such as data.root=...")
        _check_read(override, command, "a module")
        if not _goes_with_module(key):
            meant = next(
                (
                    f"; did you mean {each}={override.partition('=')[2]}?"
                    for each in meant_by(key)
                    if _goes_with_module(each)
                ),
                "",
            )
            way_out = ANSWERS.get(key, f"these can: {', '.join(MODULE_KEYS)}")
            raise ConfigError(f"{override}: cannot be set with --module{meant}\n{way_out}")
    return keys


def _check_read(override: str, command: str, of: str) -> None:
    """Refuse what `command` does not read where it examines one model. Errors: ConfigError."""
    key = override.partition("=")[0].lstrip("+~")
    if command and OF_ONE.get(key, command) != command:
        raise ConfigError(f"{override}: has no effect on {of} here\n{ANSWERS[key]}")


def _goes_with_module(key: str) -> bool:
    return any(key == known or key.startswith(f"{known}.") for known in MODULE_KEYS)
