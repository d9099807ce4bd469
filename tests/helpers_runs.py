"""Run folders with chosen figures, for tests of whatever reads them.

make_run(tmp_path / "a", norm="ghost", seed=1, test_accuracy=[0.1, 0.9, 0.98])
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from helpers_cli import ROOT, Done, bnlab

OWN = {
    "batch": {"momentum": 0.1},
    "ghost": {"momentum": 0.1, "size": 32, "update": "pooled"},
    "group": {"groups": 8},
    "layer": {"over": "sample"},
}
# what may lie in a status.json that cannot be read
STATUS = {
    "text": "hello",
    "list": "[]",
    "empty": "",
    "nuls": "\0\0",
    "deep": "[" * 100_000,
    "deep_config": json.dumps({"schema": 1, "state": "failed", "config": json.loads('{"a":' * 50 + "1" + "}" * 50)}),
    "many_keys": json.dumps(
        {"schema": 1, "state": "failed", "config": {f"k{i}": i for i in range(2000)} | {"seed": 0}}
    ),
    "digits": '{"schema": ' + "1" * 5000 + "}",
    "newer": json.dumps({"schema": 2}),
    "no_schema": json.dumps({"state": "done"}),
    "true_schema": json.dumps({"schema": True}),
    "bad_state": json.dumps({"schema": 1, "state": ["done"]}),
    "no_config": json.dumps({"schema": 1, "state": "failed"}),
    "list_config": json.dumps({"schema": 1, "state": "failed", "config": [1]}),
    "no_seed": json.dumps({"schema": 1, "state": "failed", "config": {}}),
    "text_seed": json.dumps({"schema": 1, "state": "failed", "config": {"seed": "0"}}),
    "no_summary": json.dumps({"schema": 1, "state": "done", "config": {"seed": 0}}),
}
STEPS_BETWEEN = 100  # evaluations


def config_of(norm: str, seed: int, data: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested configuration; `changes` are dotted keys."""
    config: dict[str, Any] = {
        "name": None,
        "seed": seed,
        "norm": {"name": norm, "eps": 1e-5, "affine": True, "eps_outside": False, **OWN.get(norm, {})},
        "model": {"name": "cnn", "placement": "pre", "norm_every": 1, "bias": "auto", "widths": [32, 64], "depth": 1},
        "data": {"name": data, "root": "data", "train_size": None, "valid_size": 1000, "batch_size": 64},
        "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"name": "one_cycle", "warmup": 0.3},
        "trainer": {"epochs": 3.0, "steps": None, "device": "cpu", "threads": 2, "precision": "float32"},
        "eval": {"every": 1.0, "batch_size": 500, "probe_samples": 2048},
    }
    for key, value in changes.items():
        node = config
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config


def make_run(
    folder: Path,
    *,
    norm: str = "batch",
    seed: int = 0,
    data: str = "mnist",
    test_accuracy: Sequence[float | None] = (0.1, 0.95, 0.98),
    valid_accuracy: Sequence[float | None] | None = None,
    state: str = "done",
    config: Mapping[str, Any] = {},
    environment: Mapping[str, Any] = {},
    summary: Mapping[str, Any] = {},
    step_ms: float = 2.0,
    order: int | None = None,
    fingerprint: str = "f00d",
    error: str | None = None,
) -> Path:
    """Write a run folder as `record` does and return it; without `valid_accuracy` both splits have the same curve.

    `config` holds dotted keys, `environment` and `summary` replace keys of theirs. Runs that are not `done` or
    `diverged` have no summary. `order` is by default the seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tree = config_of(norm, seed, data, config)
    identity = sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
    place = environment_of(fingerprint) | dict(environment)
    status = {
        "schema": 1,
        "state": state,
        "identity": identity,
        "order": seed if order is None else order,
        "started": "2026-01-01T00:00:00+00:00",
        "pid": 1,
        "error": error,
        "config": tree,
    }
    _write(folder / "status.json", status)
    _write(folder / "environment.json", place)
    if state in ("done", "diverged"):
        valid = list(test_accuracy if valid_accuracy is None else valid_accuracy)
        whole = _summary(list(test_accuracy), valid, step_ms)
        whole |= {"state": state, "identity": identity, "config": tree, "environment": place}
        whole |= {"diverged_at": 7 if state == "diverged" else None, **summary}
        _write(folder / "summary.json", whole)
    return folder


def environment_of(fingerprint: str) -> dict[str, Any]:
    """Return a machine."""
    return {
        "bnlab": "0.1.0",
        "python": "3.12.1",
        "torch": "2.15.0",
        "cpu": "A processor",
        "cores": 2,
        "gpu": None,
        "device": "cpu",
        "threads": 2,
        "data_fingerprint": fingerprint,
    }


def _summary(test: list[float | None], valid: list[float | None], step_ms: float) -> dict[str, Any]:
    n = len(test)
    steps = [STEPS_BETWEEN * i for i in range(n)]
    loss = [None if a is None else round(2.3 * (1 - a), 6) for a in test]
    return {
        "schema": 1,
        "steps": steps[-1],
        "epochs": float(n - 1),
        "num_parameters": 1234,
        "train_seconds": steps[-1] * step_ms / 1e3,
        "wall_seconds": 0.0,  # no run is beside another
        "eval_seconds": 0.5,
        "unnormalizable_batches": 0,
        "step_ms": {"median": step_ms, "p10": 0.9 * step_ms, "p90": 1.2 * step_ms},
        "images_per_second": 64e3 / step_ms,
        "initial_share": {"momentum": 0.1, "decay": 0.9, "share_left": 7e-10, "half_life_steps": 6.58},
        "refresh_ms": 0.2 * step_ms,
        "discrepancy_seconds": 0.2,
        "discrepancy_share": 0.05,
        "layers": {
            name: {
                "depth": depth,
                "channels": 32,
                "mean_z": 0.01 * depth,
                "mean_z_max": 0.04 * depth,
                "log_std_ratio": -0.02 * depth,
                "log_std_ratio_max": 0.05 * depth,
                "curve": {"mean_z": [0.3] * (n - 1) + [0.01 * depth], "log_std_ratio": [0.0] * n},
            }
            for depth, name in enumerate(("1", "5"), 1)
        },
        "facts": {"reads_batch": True, "keeps_stats": True},
        "curve": {
            "step": steps,
            "epoch": [float(i) for i in range(n)],
            "seconds": [s * step_ms / 1e3 for s in steps],
            "train.loss": loss,
            "train.accuracy": test,
            "valid.loss": loss,
            "valid.accuracy": valid,
            "test.loss": loss,
            "test.accuracy": test,
            "test.acc_gap": [-0.01] * n,
            "test.loss_gap": [0.02] * n,
            "test.flip_rate": [0.03] * n,
            "test.kl": [0.004] * n,
            "test.logit_rms": [0.06] * n,
            "test.ece": [0.008] * n,
            "test.mate_noise": [0.07] * n,
            "test.fold_error": [2e-7] * n,
        },
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))


def bnlab_compare(*arguments: str, **env: str) -> Done:
    """Run `bnlab compare`, by default for 120 columns without colour."""
    return bnlab("compare", *arguments, cwd=ROOT, **{"COLUMNS": "120", "NO_COLOR": "1", **env})
