"""Runs in memory for tests of claims: arms with figures that the test makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bnlab.record.read import Run


def run_of(
    seed: int, figures: Mapping[str, float], *, state: str = "done", fingerprint: str = "f00d", **config: Any
) -> Run:
    """Return a run; `figures` are curves' last values (`test.accuracy`) or other entries of a summary.

    Keys of the configuration have `__` for a dot: `norm__name="batch"`.
    """
    keys = {key.replace("__", "."): value for key, value in config.items()}
    curve = {name: [value] for name, value in figures.items() if "." in name}
    rest = {name: value for name, value in figures.items() if "." not in name}
    return Run(
        folder=Path(f"runs/{seed}"),
        state=state,  # type: ignore[arg-type]
        identity="",
        config={"data.name": "digits", "seed": seed, **keys},
        seed=seed,
        order=seed,
        error=None,
        environment={"data_fingerprint": fingerprint},
        summary={"state": state, "curve": curve, **rest} if state in ("done", "diverged") else None,
    )


def arm(name: str, values: Iterable[float], figure: str = "test.accuracy", **config: Any) -> list[Run]:
    """Return a run a value, with the seeds 0, 1, ..."""
    return [run_of(seed, {figure: value}, norm__name=name, **config) for seed, value in enumerate(values)]


def bench(name: str, ratio: tuple[float, float, float], control: tuple[float, float] = (0.99, 1.01)) -> Run:
    """Return what a bench left of an arm; the baseline is `none`."""
    figures = dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))
    figures |= {"control_low": control[0], "control_high": control[1]}
    about = {"arm": name, "baseline": "none", "rounds": 50}
    return run_of(0, {"bench": figures | about}, norm__name=name)  # type: ignore[dict-item]
