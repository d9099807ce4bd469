"""Run folders to compare: the records that real runs leave, without training anything."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bnlab.record.run_folder import RunFolder, queue

SEEDS, EVALUATIONS = 10, 20
FIGURES = ("loss", "accuracy", "acc_gap", "loss_gap", "flip_rate")


def write_runs(base: Path, count: int) -> None:
    """Write `count` finished runs: arms of ten seeds, which differ in strategy and learning rate."""
    norms = ("none", "batch", "ghost", "instance", "layer")
    for number in range(count):
        arm, seed = divmod(number, SEEDS)
        config = {
            "name": None,
            "seed": seed,
            "norm": {"name": norms[arm % len(norms)], "eps": 1e-5, "affine": True},
            "model": {"name": "cnn", "widths": [32, 64], "dropout": 0.0},
            "data": {"name": "mnist", "root": "data", "batch_size": 64},
            "optim": {"name": "sgd", "lr": 0.01 * (1 + arm // len(norms))},
            "trainer": {"epochs": 5.0, "device": "cpu"},
        }
        folder = base / f"{number:04d}"
        queue(folder, config, "", f"{number:016x}")
        run = RunFolder(folder, f"{number:016x}")
        run.finish("done", summary=_summary(arm, seed))


def _summary(arm: int, seed: int) -> dict[str, Any]:
    steps = [940 * i for i in range(EVALUATIONS + 1)]
    curve: dict[str, list[float]] = {"step": [float(s) for s in steps], "epoch": [s / 940 for s in steps]}
    curve["seconds"] = [s * 0.01 for s in steps]
    for split in ("train", "valid", "test"):
        for figure in FIGURES:
            spread = (7 * arm + seed) % 13 / 40
            curve[f"{split}.{figure}"] = [(1 - math.exp(-s / 3000)) / (1 + spread) for s in steps]
    return {
        "state": "done",
        "steps": steps[-1],
        "step_ms": {"median": 10.0, "p10": 9.0, "p90": 12.0},
        "images_per_second": 6000.0,
        "train_seconds": 188.0,
        "num_parameters": 50_000,
        "environment": {"torch": "2.15.0", "device": "cpu", "threads": 2, "data_fingerprint": "0" * 64},
        "curve": curve,
    }
