"""What TensorBoard and MLflow are told of a run beside its curves: name, start, final figures."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from bnlab.compare.arms import arms_of, short_names, text_of
from bnlab.compare.frames import frame_of
from bnlab.metrics import metrics
from bnlab.record.read import Run
from bnlab.report.console import clean


def labels_of(runs: Sequence[Run]) -> list[str]:
    """Return what tells each run from the others: `norm=batch lr=0.1 seed=0`."""
    short = short_names(arms_of(runs)[1]) | {"seed": "seed"}
    return [
        clean(" ".join(f"{name}={text_of(run.config[key])}" for key, name in short.items() if key in run.config))
        for run in runs
    ]


def started_of(run: Run) -> float:
    """Return the start of a run in seconds since 1970, as far as its record can be believed."""
    return min(max(run.order, 0), time.time_ns()) / 1e9


def figures_of(runs: Sequence[Run]) -> list[dict[str, float]]:
    """Return for each run the metrics that it has, which are finite and only those of finished runs."""
    rows = frame_of(runs).to_dict("records")
    return [{name: row[name] for name in metrics if math.isfinite(row.get(name, math.nan))} for row in rows]
