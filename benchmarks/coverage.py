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


def cases() -> dict[str, tuple[Draw, Estimate, float]]:
    """Return by name how values are drawn, what is printed of them, and the truth."""
    known: dict[str, tuple[Draw, Estimate, float]] = {
        "normal": (lambda g, size: g.normal(0.0, 1.0, size), estimate_mean, 0.0)
    }
    for sigma in (0.1, 0.5, 1.0):
        known[f"time, lognormal, sigma {sigma:g}"] = (
            lambda g, size, sigma=sigma: g.lognormal(0.0, sigma, size),
            lambda values: estimate_mean(values, is_skewed=True),
            math.exp(sigma**2 / 2),
        )
    for images in (360, 10_000):
        for share in (0.9, 0.99, 0.999):
            known[f"accuracy of {100 * share:g}%, {images:,} images"] = (
                lambda g, size, m=images, p=share: g.binomial(m, p, size) / m,
                lambda values, m=images: estimate_mean(values, (0.0, 1.0), m),
                share,
            )
    known["median time to a target, evaluated every half of it"] = (
        lambda g, size: np.ceil(g.exponential(1.0, size) / (math.log(2) / 2)) * math.log(2) / 2,
        lambda values: estimate_median(values, before=[value - math.log(2) / 2 for value in values]),
        math.log(2) - 1e-9,
    )
    return known


def main(samples: int) -> None:
    """Print a table, one row a case."""
    print("| | " + " | ".join(f"n = {n}" for n in SEEDS) + " |\n| --- |" + " ---: |" * len(SEEDS))
    for name, (draw, estimate, truth) in cases().items():
        figures = [f"{100 * covered(draw, estimate, truth, n, samples):.1f}" for n in SEEDS]
        print(f"| {name} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
