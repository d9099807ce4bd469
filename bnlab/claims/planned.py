"""Runs that are still to be made, as runs: what a cell means can be found before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnlab.record.read import Run, flatten


def planned(tree: Mapping[str, Any], identity: str = "", *, is_bench: bool = False) -> Run:
    """Return the run that a configuration stands for, queued; of a bench, an arm of it."""
    config = flatten(dict(tree))
    if is_bench:
        config["bench.graph"] = False  # as a bench is read
    summary: dict[str, Any] | None = {"bench": {}, "curve": {}} if is_bench else None
    return Run(folder=Path(), state="queued", identity=identity, config=config, seed=config["seed"], summary=summary)
