"""How often the 95% intervals of a comparison contain the truth, in percent, by simulation.

python -m benchmarks.coverage [SAMPLES]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bnlab.compare.statistics import estimate_mean, estimate_median
from bnlab.interval import Interval

SEEDS = (3, 5, 10)
Draw = Callable[[np.random.Generator, tuple[int, int]], npt.NDArray[np.float64]]
Estimate = Callable[[Sequence[float]], Interval]


def covered(draw: Draw, estimate: Estimate, truth: float, n: int, samples: int) -> float:
    """Return the share of `samples`, each of `n` seeds, whose interval contains `truth`."""
    rows = draw(np.random.default_rng(n), (samples, n)).tolist()
    found = [estimate(row) for row in rows]
    return float(np.mean([e.low is None or e.low <= truth <= (e.high or math.inf) for e in found]))


Case = tuple[Draw, Estimate, float]  # how values are drawn, what is printed of them, and the truth


def cases() -> dict[str, Case]:
    """Return all cases by name."""
    sigmas, sizes, shares = (0.1, 0.5, 1.0), (360, 10_000), (0.9, 0.99, 0.999)
    return {
        "normal": (lambda g, size: g.normal(0.0, 1.0, size), estimate_mean, 0.0),
        **{f"time, lognormal, sigma {sigma:g}": _time(sigma) for sigma in sigmas},
        **{f"accuracy of {100 * p:g}%, {m:,} images": _accuracy(m, p) for m in sizes for p in shares},
        "median time to a target, evaluated every half of it": _time_to_target(),
    }


def _time(sigma: float) -> Case:
    mean = math.exp(sigma**2 / 2)
    return lambda g, size: g.lognormal(0.0, sigma, size), lambda values: estimate_mean(values, is_skewed=True), mean


def _accuracy(images: int, share: float) -> Case:
    return (
        lambda g, size: g.binomial(images, share, size) / images,
        lambda values: estimate_mean(values, (0.0, 1.0), images),
        share,
    )


def _time_to_target() -> Case:
    median = math.log(2)
    between = median / 2
    return (
        lambda g, size: np.ceil(g.exponential(1.0, size) / between) * between,
        lambda values: estimate_median(values, before=[value - between for value in values]),
        median - 1e-9,
    )


def main(samples: int) -> None:
    """Print a table, one row a case."""
    print("| | " + " | ".join(f"n = {n}" for n in SEEDS) + " |\n| --- |" + " ---: |" * len(SEEDS))
    for name, (draw, estimate, truth) in cases().items():
        figures = [f"{100 * covered(draw, estimate, truth, n, samples):.1f}" for n in SEEDS]
        print(f"| {name} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
