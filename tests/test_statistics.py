"""The statistics of a comparison against scipy.stats, published examples and what the definitions demand."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from helpers_cases import for_each
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bnlab.compare.deciding import Paired, Rule, decide
from bnlab.compare.statistics import (
    MOST_PAIRS,
    coverage_of_range,
    detectable_difference,
    estimate_mean,
    estimate_median,
    holm,
    pairs_needed,
    restrict,
    t_quantile,
    t_tails,
    wilson_interval,
)
from bnlab.interval import Interval

INF = math.inf


def paired_difference(values: list[float], baseline: list[float], slack: tuple[float, float] = (0.0, 0.0)) -> Interval:
    return Paired.of(values, baseline, Rule(), slack).interval()


# Extra hours of sleep under two drugs, ten patients (Student 1908; R: t.test(extra ~ group, sleep, paired = TRUE)).
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

coarse = st.integers(-1000, 1000).map(lambda i: i / 100)  # ties and zeros are likely


@for_each("df", [1, 2, 3, 4, 5, 9, 10, 49, 100, 999])
@for_each("t", [0.0, 1e-6, 0.3, -1.0, 2.776, 12.706, 60.0])
def test_t_tails_are_those_of_scipy(t: float, df: int) -> None:
    assert t_tails(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), rel=1e-9, abs=2e-13)


@for_each("df", [1, 2, 3, 4, 7, 30, 999])
@for_each("probability", [0.5, 0.8, 0.95, 0.975, 0.9995])
def test_t_quantile_is_that_of_scipy(probability: float, df: int) -> None:
    assert t_quantile(probability, df) == pytest.approx(stats.t.ppf(probability, df), rel=1e-9, abs=1e-12)


def test_students_sleep_data() -> None:
    found = paired_difference(DRUG_1, DRUG_2)
    assert found is not None
    assert found.value == pytest.approx(-1.58)
    assert (found.low, found.high) == (pytest.approx(-2.4598858, abs=1e-7), pytest.approx(-0.7001142, abs=1e-7))
    assert found.value / (found.sd / math.sqrt(10)) == pytest.approx(-4.0621, abs=5e-5)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.n == 10


@settings(max_examples=60)
@given(st.lists(coarse, min_size=2, max_size=30))
def test_interval_of_a_mean_is_that_of_scipy(values: list[float]) -> None:
    found = estimate_mean(values)
    if len(set(values)) > 1:
        low, high = stats.t.interval(0.95, len(values) - 1, statistics.fmean(values), stats.sem(values))
    elif len(values) > 5:
        low = high = found.value
    else:
        assert (found.low, found.high) == (None, None), "so few equal values are no certainty"
        return
    assert (found.low, found.high) == (pytest.approx(low, 1e-9, 1e-9), pytest.approx(high, 1e-9, 1e-9))
    assert (found.n, found.num_missed, found.kind) == (len(values), 0, "mean")


@settings(max_examples=60)
@given(st.lists(st.tuples(coarse, coarse), min_size=2, max_size=20))
def test_paired_p_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    values, baseline = [a for a, _ in pairs], [b for _, b in pairs]
    found = paired_difference(values, baseline)
    assert found is not None
    if len({round(a - b, 6) for a, b in pairs}) == 1:
        assert found.sd == 0
        assert found.p == (1.0 if found.value == 0 and len(pairs) > 2 else None)
    elif len(pairs) < 3:
        assert found.p is None
    else:
        assert found.p == pytest.approx(stats.ttest_rel(values, baseline).pvalue, rel=1e-6, abs=2e-12)


@for_each(("share", "number"), [(0.9, 1080), (0.999, 1080), (1.0, 360), (0.0, 5), (0.37, 100_000)])
def test_wilsons_interval_is_that_of_scipy(share: float, number: int) -> None:
    found = stats.binomtest(round(share * number), number).proportion_ci(method="wilson")
    assert wilson_interval(round(share * number) / number, number) == pytest.approx(tuple(found), abs=1e-12)


@for_each("images", [360, 10_000])
@for_each("share", [0.9, 0.99, 0.999])
def test_intervals_of_accuracies_cover_them(images: int, share: float) -> None:
    draw = np.random.default_rng(0)
    for n in (3, 5, 10):
        found = [
            estimate_mean(row, (0.0, 1.0), images)
            for row in (draw.binomial(images, share, (1000, n)) / images).tolist()
        ]
        bounds = np.array([(each.low, each.high) for each in found], dtype=float)
        assert np.mean((bounds[:, 0] <= share) & (share <= bounds[:, 1])) >= 0.93
        assert bounds.min() >= 0
        assert bounds.max() <= 1
        assert np.all(bounds[:, 0] < bounds[:, 1]), "a few equal counts are no certainty"


@for_each("sigma", [0.1, 0.5, 1.0])
def test_intervals_of_lognormal_times_cover_their_mean(sigma: float) -> None:
    draw, truth = np.random.default_rng(0), math.exp(sigma**2 / 2)
    for n in (3, 5, 10):
        found = [estimate_mean(row, is_skewed=True) for row in draw.lognormal(0, sigma, (2000, n)).tolist()]
        bounds = np.array([(each.low, each.high) for each in found], dtype=float)
        assert np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])) >= 0.92  # 2,000 of 93% to 95%
        assert bounds.min() > 0


def test_an_interval_stays_within_its_bounds_and_contains_its_value() -> None:
    for values in ([0.0, 0.001, 0.05], [1.0, 0.98, 0.999], [1.01, 1.02, 1.0]):
        found = estimate_mean(values, (0.0, 1.0), 360)
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.value <= found.high
        assert found.high <= max(1.0, found.value)


def test_times_known_to_a_grid() -> None:
    equal = estimate_median([50.0] * 3, before=[0.0] * 3)
    assert (equal.since, equal.low, equal.value, equal.high) == (0.0, 0.0, 50.0, 50.0)
    draw = np.random.default_rng(0)
    for n in (6, 10):
        times = draw.exponential(100, (2000, n))
        grid = np.ceil(times / 50) * 50
        found = [estimate_median(row, before=(np.array(row) - 50).tolist()) for row in grid.tolist()]
        inside = [each.low < 100 * math.log(2) <= each.high for each in found if each.low is not None and each.high]
        assert np.mean(inside) >= 0.95


def test_a_difference_within_its_slack_is_none() -> None:
    found = paired_difference([50.0, 50.0, 100.0], [100.0, 100.0, 100.0], slack=(50.0, 50.0))
    assert found is not None
    assert found.p == 1.0
    assert (found.low, found.high) == (
        pytest.approx(-33.33 - 71.71 - 50, abs=0.1),
        pytest.approx(-33.33 + 71.71 + 50, abs=0.1),
    )
    far, shifted = paired_difference([0.0, 1.0, 2.0], [10.0, 12.0, 11.0], slack=(0.0, 4.0)), [10 - 4, 11 - 4, 9 - 4]
    assert far is not None
    assert far.p == pytest.approx(stats.ttest_1samp(shifted, 0).pvalue)


def test_no_interval_is_made_up() -> None:
    assert math.isnan(estimate_mean([]).value)
    assert estimate_mean([]).n == 0
    one = estimate_mean([0.9])
    assert (one.value, one.low, one.high, one.n) == (0.9, None, None, 1)
    pair = paired_difference([0.9], [0.8])
    assert pair is not None
    assert (pair.low, pair.high, pair.p, pair.n) == (None, None, None, 1)
    assert math.isnan(estimate_median([]).value)
    assert (estimate_median([3.0]).low, estimate_median([3.0]).high) == (None, None)


def test_values_that_do_not_vary() -> None:
    same = estimate_mean([0.1 + 0.2, 0.3, 0.3])  # 0.30000000000000004: rounding is no spread
    assert (same.low, same.high) == (None, None)
    many = estimate_mean([0.3] * 6)  # 2 of 64 signs
    assert many.low == many.high == many.value
    equal = paired_difference([0.9, 0.8, 0.7], [0.9, 0.8, 0.7])
    assert equal is not None
    assert (equal.value, equal.low, equal.high, equal.p) == (0.0, None, None, 1.0)
    shifted = paired_difference([0.4, 0.5, 0.6], [0.3, 0.4, 0.5])
    assert shifted is not None
    assert shifted.value == pytest.approx(0.1)
    assert shifted.p is None, "a constant difference shows no spread to judge it by"


@for_each("digits", [np.float64, np.float32])
def test_equal_counts_decide_nothing_whatever_their_precision(digits: type) -> None:
    """A tracker keeps shares in single precision, whose rounding is no spread between seeds."""
    counts = [345, 344, 347], [342, 341, 344]
    values, baseline = ([float(digits(count / 360)) for count in each] for each in counts)
    found = paired_difference(values, baseline)
    assert found.sd == 0
    assert (found.low, found.high, found.p) == (None, None, None)


def test_more_equal_counts_are_known_to_one_image() -> None:
    step = 1 / 360
    found = Paired.of([0.9] * 8, [0.8] * 8, Rule(margin=0.2), step=step)
    assert (found.interval().low, found.interval().high) == (pytest.approx(0.1 - step), pytest.approx(0.1 + step))
    assert found.interval().p == 2**-7
    same = [Paired.of([0.9] * 8, [0.9] * 8, Rule(margin=margin), step=step) for margin in (0.002, 0.003)]
    assert [each.margin_p() for each in same] == [1.0, 2**-7], "no finer than one image"


@for_each("n", [2, 3, 4, 5])
@for_each("images", [360, 10_000])
@for_each("share", [0.9, 0.99, 0.999])
def test_counts_of_few_seeds_lead_to_few_false_decisions(share: float, images: int, n: int) -> None:
    """Accuracies of two arms that do not differ, or by less than the margin they are asked about: at most 5%."""
    draw, families = np.random.default_rng(n), 2000
    rates = draw.binomial(images, share, (2, families, n)) / images
    rule, step = Rule(margin=0.5 / images), 1 / images
    apart = differing = alike = 0
    for values, baseline in zip(*rates.tolist(), strict=True):
        found = Paired.of(values, baseline, Rule(), step=step)
        interval = found.interval()
        apart += interval.excludes(0)
        differing += interval.p is not None and interval.p < 0.05
        shifted = Paired.of([value + 0.5 / images for value in values], baseline, rule, step=step)
        alike += decide([shifted], "higher")[0][1] == "no difference that matters"
    most = 0.05 * families + 3 * math.sqrt(0.05 * 0.95 * families)
    assert max(apart, differing, alike) <= most


@for_each(
    ("ps", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),  # R: p.adjust(..., "holm")
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.02, None, 0.03], [0.04, None, 0.04]),
        ([], []),
    ],
)
def test_holm_examples(ps: list[float | None], corrected: list[float | None]) -> None:
    assert holm(ps) == [None if p is None else pytest.approx(p) for p in corrected]


@given(st.lists(st.none() | st.floats(0, 1), max_size=12))
def test_holm_only_raises_keeps_order_and_is_at_most_bonferroni(ps: list[float | None]) -> None:
    corrected = holm(ps)
    m = sum(p is not None for p in ps)
    found = [(p, q) for p, q in zip(ps, corrected, strict=True) if p is not None]
    assert all(q is not None and p <= q <= min(1.0, m * p) + 1e-12 for p, q in found)
    ordered = sorted(found)
    assert [q for _, q in ordered] == sorted(q for _, q in ordered)
    assert [p is None for p in ps] == [q is None for q in corrected]


@for_each(("n", "k"), [(2, 1), (5, 1), (6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (15, 4), (20, 6), (25, 8)])
def test_ranks_of_the_median_interval(n: int, k: int) -> None:
    found = estimate_median([float(i) for i in range(1, n + 1)])
    assert (found.low, found.high) == (k, n + 1 - k)
    if n >= 6:
        assert 1 - 2 * stats.binom.cdf(k - 1, n, 0.5) >= 0.95 > 1 - 2 * stats.binom.cdf(k, n, 0.5)
    else:
        assert coverage_of_range(n) == pytest.approx(1 - 2 * stats.binom.cdf(0, n, 0.5))


def test_median_of_censored_times() -> None:
    found = estimate_median([INF, 300.0, 100.0, INF, 200.0], limit=1880.0)
    assert (found.value, found.low, found.high) == (300.0, 100.0, None)
    assert (found.n, found.num_missed, found.limit, found.kind) == (5, 2, 1880.0, "median")
    few = estimate_median([INF, 300.0, 100.0, INF, INF], limit=1880.0)
    assert math.isnan(few.value)
    assert few.num_missed == 3
    half = estimate_median([100.0, INF], limit=50.0)
    assert math.isnan(half.value), "with half of the runs arrived the median lies beyond what was seen"
    none = estimate_median([INF] * 3, limit=9.0)
    assert math.isnan(none.value)
    assert (none.low, none.high, none.num_missed) == (None, None, 3)


def test_restricted_times() -> None:
    assert restrict([100.0, INF, 1900.0], [1880.0, 2000.0]) == [100.0, 1880.0, 1880.0]
    assert restrict([100.0, 1900.0], []) == [100.0, 1900.0]


@for_each(("n", "within"), [(3, 0.06), (5, 0.02), (10, 0.005), (40, 0.005)])
def test_detectable_difference_has_the_stated_power(n: int, within: float) -> None:
    size = detectable_difference(2.0, n)
    assert size is not None
    critical = stats.t.ppf(0.975, n - 1)
    exact = 1 - stats.nct.cdf(critical, n - 1, size / 2.0 * math.sqrt(n))
    assert exact == pytest.approx(0.8, abs=within)


@given(st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_pairs_needed_is_the_smallest_number(difference: float, sd: float) -> None:
    n = pairs_needed(-difference, sd)
    if n is None:
        size = detectable_difference(sd, MOST_PAIRS)
        assert size is not None
        assert size > difference
    else:
        found, fewer = detectable_difference(sd, n), detectable_difference(sd, n - 1)
        assert found is not None
        assert found <= difference
        assert fewer is None or fewer > difference


def test_planning_at_the_edges() -> None:
    assert detectable_difference(1.0, 1) is None
    assert pairs_needed(0.0, 1.0) is None
    assert pairs_needed(1.0, 0.0) == 2
    assert pairs_needed(1e-9, 1.0) is None
