"""How often does a bench tell an arm from itself? `python -m benchmarks.equal_arms [PAIRS [SECONDS [MODEL,...]]]`.

The same strategy stands in both arms: momentum changes no step's work. At most 5% of the intervals may exclude 1, and
the mean ratio is 1.
"""

from __future__ import annotations

import math
import statistics
import sys

from bnlab.bench.arms import contest, read
from bnlab.bench.engine import measure

ARMS = ["norm=batch", "norm.momentum=0.1,0.2", "data=digits", "trainer.threads=1"]


def main(pairs: int = 200, seconds: float = 8.0, models: str = "mlp,cnn") -> None:
    for model in models.split(","):
        limits, (section,), _ = read([*ARMS, f"model={model}", f"bench.seconds={seconds}"])
        ratios = [measure(contest(section), limits, seconds, lambda *_: None).arms[1].ratio for _ in range(pairs)]
        logs = [math.log(ratio.value) for ratio in ratios]
        excluded = sum(ratio.excludes(1) for ratio in ratios)
        mean, error = math.exp(statistics.fmean(logs)), statistics.stdev(logs) / math.sqrt(pairs)
        width = statistics.median(ratio.relative_half for ratio in ratios)
        blocks = statistics.median(ratio.n for ratio in ratios)
        print(
            f"{model}: {excluded} of {pairs} intervals exclude 1; mean ratio {mean:.4f} (standard error {error:.4f}); "
            f"median half-width {100 * width:.1f} %, {blocks:g} blocks",
            flush=True,
        )


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, float, str), sys.argv[1:], strict=False)))
