"""Looking more than once: critical levels against published ones, corrected p, verdicts and their error rates."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from helpers_cases import for_each
from scipy import stats

from bnlab.compare.deciding import Paired, Rule, decide
from bnlab.compare.looks import critical_level, crossing_probability, sequential_p

LOOKS = (3, 5, 8, 12, 20)


@for_each("number, published", [(2, 2.178), (3, 2.289), (4, 2.361), (5, 2.413)])
def test_with_many_pairs_the_critical_values_are_pococks(number: int, published: float) -> None:
    looks = tuple(200 * (i + 1) for i in range(number))
    assert NormalDist().inv_cdf(1 - critical_level(looks, 0.05) / 2) == pytest.approx(published, abs=3e-3)


@for_each("looks", [LOOKS, (3, 5), (8, 12, 20), tuple(range(3, 13))])
def test_critical_level_agrees_with_simulated_t_tests(looks: tuple[int, ...]) -> None:
    families = 30_000
    values = np.random.default_rng(3).standard_normal((families, looks[-1]))
    smallest = np.min([stats.ttest_1samp(values[:, :n], 0, axis=1).pvalue for n in looks], axis=0)
    for alpha in (0.2, 0.05, 0.01):
        crossed = (smallest <= critical_level(looks, alpha)).mean()
        assert crossed == pytest.approx(alpha, abs=4 * math.sqrt(alpha * (1 - alpha) / families))


def test_default_looks_have_the_level_of_the_simulation_that_the_design_was_chosen_by() -> None:
    assert critical_level(LOOKS, 0.05) == pytest.approx(0.0129, abs=1e-4)
    assert crossing_probability(LOOKS, critical_level(LOOKS, 0.05)) == pytest.approx(0.05, rel=0.006)


@for_each("looks", [(3, 5, 8), LOOKS])
@for_each("alpha", [5e-4, 2e-4, 2e-5])
def test_a_level_shared_among_many_parts_is_kept(looks: tuple[int, ...], alpha: float) -> None:
    level = critical_level(looks, alpha)
    assert alpha / len(looks) * 0.999 <= level
    assert crossing_probability(looks, level) <= 1.05 * alpha  # the quadrature is that good


def test_sequential_p_rises_with_p_between_p_and_bonferronis() -> None:
    ps = [10.0**e for e in np.linspace(-12, 0, 200)]
    corrected = [sequential_p(LOOKS, p) for p in ps]
    assert corrected == sorted(corrected)
    assert all(p <= found <= min(1.0, len(LOOKS) * p * 1.001) for p, found in zip(ps, corrected, strict=True))
    assert [sequential_p((7,), p) for p in ps] == ps


@for_each("n", [3, 5, 8, 20])
def test_one_look_is_the_ordinary_paired_t(n: int) -> None:
    draw = np.random.default_rng(n)
    values, baseline = draw.standard_normal(n) + 1, draw.standard_normal(n)
    found = Paired([float(d) for d in values - baseline], Rule()).interval()
    expected = stats.ttest_rel(values, baseline)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


@for_each("test", ["t", "signs"])
@for_each("n", [6, 8, 12, 20])
def test_interval_excludes_zero_exactly_where_p_is_below_alpha(test: str, n: int) -> None:
    rule = Rule(LOOKS, test=test, margin=0.9)
    seen = set()
    for seed in range(60):
        draw = np.random.default_rng(seed)
        pair = Paired([float(d) for d in draw.standard_normal(n) + draw.uniform(-2, 2)], rule)
        found, margin_p = pair.interval(), pair.margin_p()
        if found.low is None or found.p is None or margin_p is None:
            assert 2 * 2.0**-n > rule.level  # too few signs for this level
            continue
        assert found.excludes(0) == (found.p < rule.alpha)
        assert (found.low > -0.9 and found.high < 0.9) == (margin_p < rule.alpha)
        seen.add((found.excludes(0), margin_p < rule.alpha))
    assert n < 8 or len(seen) >= 2


def test_test_by_signs_is_the_permutation_test_of_scipy() -> None:
    differences = [0.3, 1.2, -0.4, 2.2, 0.9, 0.1, 1.3]
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert Paired(differences, Rule(test="signs")).interval().p == pytest.approx(expected.pvalue)


def test_drawn_signs_come_near_all_signs() -> None:
    differences = [float(d) for d in np.random.default_rng(5).standard_normal(15) + 0.55]
    signs = 1 - 2 * ((np.arange(2**15)[:, None] >> np.arange(15)) & 1)
    exact = (abs(signs @ differences) >= abs(sum(differences)) - 1e-12).mean()
    assert Paired(differences, Rule(test="signs")).interval().p == pytest.approx(exact, rel=0.1)


@for_each(
    "differences, better, margin, expected",
    [
        ([2.0, 2.1, 1.9, 2.05, 2.0], "higher", None, "better"),
        ([2.0, 2.1, 1.9, 2.05, 2.0], "lower", None, "worse"),
        ([2.0, 2.1, 1.9, 2.05, 2.0], None, None, "different"),
        ([2.0, 2.1, 1.9, 2.05, 2.0], "higher", 1.5, "better"),
        ([2.0, 2.1, 1.9, 2.05, 2.0], "higher", 2.05, "undecided"),
        ([2.0, 2.1, 1.9, 2.05, 2.0], "higher", 4.0, "no difference that matters"),
        ([0.1, -0.1, 0.05, -0.04, 0.02], "higher", 1.0, "no difference that matters"),
        ([0.1, -0.1, 0.05, -0.04, 0.02], "higher", None, "undecided"),
        ([2.0, 2.0001], "higher", 1.0, "undecided"),  # two pairs decide nothing
        ([2.0, 2.0, 2.0], "higher", 1.0, "undecided"),  # no spread was seen
        ([0.0] * 5, "higher", 1.0, "undecided"),
        ([0.0] * 8, "higher", 1.0, "no difference that matters"),  # 2 of 256 signs
        ([2.0] * 8, "higher", 1.0, "better"),
    ],
)
def test_verdicts(differences: list[float], better: str | None, margin: float | None, expected: str) -> None:
    rule = Rule(LOOKS, margin=margin)
    (found,) = decide([Paired(differences, rule)], better)
    assert found[1] == expected


def test_arms_are_corrected_together_and_one_without_pairs_counts_for_nothing() -> None:
    rule = Rule(LOOKS)
    one = Paired([1.0, 1.4, 0.9, 1.6, 0.6], rule)
    alone = decide([one], "higher")[0][0].p
    found = decide([one, None, one, one], "higher")
    assert found[1] == (None, "undecided")
    assert [found[i][0].p for i in (0, 2, 3)] == pytest.approx([3 * alone] * 3)


def test_a_grid_of_evaluations_decides_no_difference_finer_than_itself() -> None:
    rule = Rule(LOOKS)
    differences = [50.0, 50.0, 49.0, 51.0, 50.0]
    assert decide([Paired(differences, rule)], "higher")[0][1] == "better"
    found, verdict = decide([Paired(differences, rule, slack=(50.0, 50.0))], "higher")[0]
    assert (found.p, verdict) == (1.0, "undecided")
    assert found.low == pytest.approx(0.0, abs=2)
