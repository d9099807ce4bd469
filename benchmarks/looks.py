"""How often a comparison that stops when it is decided is wrong, how often it finds what is there, and its price.

    python -m benchmarks.looks
    python -m benchmarks.looks RUNS    A/A comparisons of real runs, which differ in the seed only

Simulated with the functions that `bnlab` decides with: arms share a baseline, an arm that is decided gets no further
seeds. Differences are in units of their standard deviation.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bnlab.compare.deciding import FEWEST_PAIRS, Paired, Rule, Test, decide
from bnlab.compare.looks import Array
from bnlab.metrics import find_metric
from bnlab.record.read import read_runs, started

LOOKS = (3, 5, 8, 12, 20)
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]
NOISES: dict[str, Draw] = {
    "normal": lambda draw, size: draw.standard_normal(size),
    "t, 3 df": lambda draw, size: draw.standard_t(3, size) / math.sqrt(3),
    "lognormal": lambda draw, size: (draw.lognormal(0, 1, size) - math.exp(0.5)) / 2.16,
}


@dataclass
class Outcome:
    """What came of many simulated comparisons."""

    families: int
    wrong: int = 0  # families with at least one false decision
    found: int = 0  # arms with a true difference that was decided the right way
    seeds: int = 0  # of all arms, without the baseline


def simulate(effects: list[float], rule: Rule, families: int, noise: str = "normal") -> Outcome:
    """Compare arms that differ from their baseline by `effects`, `families` times."""
    draw = np.random.default_rng(15)
    outcome = Outcome(families)
    margin = rule.margin or 0.0
    for _ in range(families):
        values = NOISES[noise](draw, (len(effects) + 1, rule.looks[-1])) / math.sqrt(2)
        differences = values[1:] - values[0] + np.array(effects)[:, None]
        used, verdicts = [0] * len(effects), ["undecided"] * len(effects)
        for look in rule.looks:
            used = [look if v == "undecided" else n for n, v in zip(used, verdicts, strict=True)]
            if look >= FEWEST_PAIRS[rule.test]:
                pairs = [Paired(d[:n].tolist(), rule) for d, n in zip(differences, used, strict=True)]
                verdicts = [verdict for _, verdict in decide(pairs, "higher")]
        outcome.seeds += sum(used)
        right = [_is_right(v, effect, margin) for v, effect in zip(verdicts, effects, strict=True)]
        outcome.wrong += False in right
        outcome.found += right.count(True)
    return outcome


def _is_right(verdict: str, effect: float, margin: float) -> bool | None:
    """Return whether a decision is true; None where there is none."""
    if verdict == "undecided":
        return None
    if verdict == "no difference that matters":
        return abs(effect) < margin
    return effect != 0 and (verdict == "better") == (effect > 0)


def upper_limit(wrong: int, families: int) -> float:
    """Return the upper end of Wilson's 95% interval of a share."""
    share, z2 = wrong / families, 1.96**2
    return (
        share + z2 / (2 * families) + math.sqrt(z2 * share * (1 - share) / families + (z2 / (2 * families)) ** 2)
    ) / (1 + z2 / families)


def same(folder: Path, families: int) -> None:
    """Print how often runs of one configuration are taken for different ones: disjoint seeds, paired at random."""
    runs = started(read_runs([folder])[0])
    values = [find_metric("test_accuracy").derive(run.summary or {}) for run in runs]
    pool = [value for value in values if isinstance(value, float)]
    NOISES["runs"] = lambda draw, size: draw.choice(pool, size, replace=False)
    print(f"{families:,} A/A comparisons of {len(pool)} runs (upper limit of the 95% interval)")
    for test in ("t", "signs"):
        for arms in (1, 4):
            wrong = simulate([0.0] * arms, Rule(LOOKS, test=test), families, "runs").wrong
            print(f"{test:5} {arms:2} arms  {wrong / families:.2%}  ({upper_limit(wrong, families):.2%})")


def main(families: int) -> None:
    print(f"{families:,} families a line, looks at {', '.join(map(str, LOOKS))} pairs")
    tests: tuple[Test, ...] = ("t", "signs")
    print("\nfalse decisions, no arm differs (upper limit of the 95% interval)")
    for test in tests:
        for noise, counts in (("normal", (1, 4, 15)), ("t, 3 df", (4,)), ("lognormal", (4,))):
            for arms in counts:
                wrong = simulate([0.0] * arms, Rule(LOOKS, test=test), families, noise).wrong
                print(f"{test:5} {noise:9} {arms:2} arms  {wrong / families:.2%}  ({upper_limit(wrong, families):.2%})")
    print("\nfalse decisions, margin 0.8: arms that differ by it, by nothing and by three times it")
    for test in tests:
        wrong = simulate([0.8, 0.8, 0.0, 2.4], Rule(LOOKS, test=test, margin=0.8), families).wrong
        print(f"{test:5} normal     4 arms  {wrong / families:.2%}  ({upper_limit(wrong, families):.2%})")
    print("\npower and mean seeds of one arm, against the fixed design with the last look only")
    for test in tests:
        for effect in (1.0, 1.5, 3.0):
            rule = Rule(LOOKS, test=test)
            looked, fixed = (simulate([effect], r, families) for r in (rule, replace(rule, looks=LOOKS[-1:])))
            print(
                f"{test:5} {effect:3} sd  power {looked.found / families:.3f} (fixed {fixed.found / families:.3f})"
                f"  seeds {looked.seeds / families:.1f} (fixed {LOOKS[-1]})"
            )


if __name__ == "__main__":
    if sys.argv[1:]:
        same(Path(sys.argv[1]), 1000)
    else:
        main(10_000)
