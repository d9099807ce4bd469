"""Runs that are still to be made, as runs: what a cell means can be found before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnlab.record.read import Run, flatten


def planned(tree: Mapping[str, Any], identity: str = "", *, bench_mode: str | None = None) -> Run:
    """Return the run that a configuration stands for, queued; with the mode of a bench, an arm of it."""
    config = flatten(dict(tree))
    if bench_mode:
        config["bench.graph"] = False  # as a bench is read
    summary: dict[str, Any] | None = {"bench": {"mode": bench_mode}, "curve": {}} if bench_mode else None
    return Run(folder=Path(), state="queued", identity=identity, config=config, seed=config["seed"], summary=summary)
