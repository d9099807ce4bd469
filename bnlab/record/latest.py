"""What was made last in the folder of runs, for whoever names no path."""

from __future__ import annotations

import os
import re
from pathlib import Path

RUNS = Path("runs")
_STAMPED = re.compile(r"\d{8}-\d{6}-")  # as `fresh_folder` names what it makes


def latest(base: Path = RUNS) -> tuple[list[Path], str | None]:
    """Return the latest sweep or bench, or the single runs that are later than it, and a line that says which.

    There is no line where nothing is left out. Folders that bnlab did not name have no age: if there are no others,
    it is all of `base`.
    """
    try:
        with os.scandir(base) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return [base], None  # reading it says why
    dated = [base / name for name in folders if _STAMPED.match(name) and any((base / name).iterdir())]
    chosen = dated[-1:]
    if chosen and _is_run(chosen[0]):
        sweeps = [number for number, folder in enumerate(dated) if not _is_run(folder)]
        chosen = dated[sweeps[-1] + 1 if sweeps else 0 :]
    if not chosen or len(chosen) == len(folders):
        return [base], None
    what = str(chosen[0]) if len(chosen) == 1 else f"{len(chosen)} single runs, {chosen[0]} to {chosen[-1]}"
    return chosen, f"the latest of {base}: {what} (--all: everything)"


def _is_run(folder: Path) -> bool:
    return os.path.lexists(folder / "status.json")
