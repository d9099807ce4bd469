"""Intervals and tests over seeds: Student's t, paired differences, Holm's correction, medians of censored times, power.

Nothing here invents certainty. One value has no interval, and fewer than six that are all equal have none: a spread
below what they are counted in was seen, not none. A constant difference of so few has no p, and two pairs have none
either. From six on the signs bound equal values (`bnlab.interval.tell_nothing`).

The t distribution is the exact finite sum for whole degrees of freedom rather than `scipy.special`: importing that
takes 0.2 to 0.3 s, half of what `bnlab compare` may take on a thousand runs. The tests hold it equal to `scipy.stats`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache

from bnlab.interval import Interval, tell_nothing

LEVEL = 0.95  # of every interval
POWER = 0.80  # of a planned comparison, at the 5% level
MOST_PAIRS = 300  # a plan that asks for more is none
SMALLEST_P = 1e-12  # what is left of the finite sum's precision in the tail
ROUNDING = 2.0**-22  # of the size of figures: below it they differ by single precision only, as trackers keep them


# Student's t


def t_tails(t: float, df: int) -> float:
    """Return P(|T| > |t|) for Student's T with `df` degrees of freedom, exact to about 1e-13.

    Abramowitz and Stegun 26.7.3 and 26.7.4, with theta = atan(t / sqrt(df)).
    """
    theta = math.atan2(abs(t), math.sqrt(df))
    cos2 = math.cos(theta) ** 2
    odd = df % 2
    term = total = 1.0
    for k in range(1, df // 2):
        term *= cos2 * (2 * k - 1 + odd) / (2 * k + odd)
        total += term
    if not odd:
        return max(0.0, 1.0 - math.sin(theta) * total)
    inner = math.sin(theta) * math.cos(theta) * total if df > 1 else 0.0
    return max(0.0, 1.0 - 2.0 / math.pi * (theta + inner))


@lru_cache(maxsize=4096)
def t_quantile(probability: float, df: int) -> float:
    """Return the t that T stays below with `probability`, from 0.5 to 1 - 1e-9."""
    wanted, t = 2.0 * (1.0 - probability), statistics.NormalDist().inv_cdf(probability)
    scale = 2.0 * math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    # Newton's steps from the left of a convex function only go right, until rounding
    while (step := (t_tails(t, df) - wanted) / (scale * (1.0 + t * t / df) ** (-(df + 1) / 2))) > 1e-14 * t:
        t += step
    return t


# Means and paired differences


def estimate_mean(
    values: Sequence[float],
    bounds: tuple[float, float] = (-math.inf, math.inf),
    images: int | None = None,
    is_skewed: bool = False,
) -> Interval:
    """Return the mean with its 95% interval; none of one value, and of few that are equal. All values must be finite.

    The interval is Student's t, cut at `bounds`. Of shares of `images` it is no narrower than Wilson's score interval
    of all n * images of them: a few equal counts are no certainty. Of a positive figure that `is_skewed` it is Cox's,
    with t for the normal quantile (Olsson 2005): exp(m + v / 2 +- t sqrt(v / n + v^2 / (2 (n - 1)))) for the mean m and
    the variance v of the logarithms. The coverage of all three stands in `bnlab guide compare`.
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, None, None, 0)
    mean, sd = _mean_and_sd(values)
    is_share = images is not None and 0 <= mean <= 1
    if n == 1 or (sd == 0 and tell_nothing(n) and not is_share):
        return Interval(mean, None, None, n)
    low, high = t_interval(mean, sd, n)
    if is_skewed and min(values) > 0 and sd > 0:
        low, high = _cox_interval(values)
    if images is not None and is_share:
        least, most = wilson_interval(mean, n * images)
        low, high = min(low, least), max(high, most)
    # a value beyond its bounds is of a damaged record, and its interval still contains it
    return Interval(mean, min(max(low, bounds[0]), mean), _finite(max(min(high, bounds[1]), mean)), n)


def wilson_interval(share: float, number: int) -> tuple[float, float]:
    """Return Wilson's 95% score interval of a share of `number` (Wilson 1927)."""
    z2 = statistics.NormalDist().inv_cdf(1 - (1 - LEVEL) / 2) ** 2
    center = (share + z2 / (2 * number)) / (1 + z2 / number)
    half = math.sqrt(z2 * share * (1 - share) / number + (z2 / (2 * number)) ** 2) / (1 + z2 / number)
    return max(center - half, 0.0), min(center + half, 1.0)


def _cox_interval(values: Sequence[float]) -> tuple[float, float]:
    n, (mean, sd) = len(values), _mean_and_sd([math.log(value) for value in values])
    half = t_quantile(1 - (1 - LEVEL) / 2, n - 1) * math.sqrt(sd**2 / n + sd**4 / (2 * (n - 1)))
    try:
        return math.exp(mean + sd**2 / 2 - half), math.exp(mean + sd**2 / 2 + half)
    except OverflowError:
        return 0.0, math.inf


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number (Holm 1979): p_(i) becomes max over j <= i of (m - j + 1) p_(j), at most 1.

    None stays None and is not counted in m.
    """
    ranked = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p))
        corrected[i] = highest
    return corrected


def sign_test(more: int, fewer: int) -> float:
    """Return the two-sided p of McNemar's exact test: of the pairs that differ so many do in each direction."""
    n = more + fewer
    tail: float = sum(math.comb(n, k) for k in range(min(more, fewer) + 1)) / 2**n
    return min(1.0, 2 * tail)


# Times that may be censored


def estimate_median(
    times: Sequence[float], limit: float | None = None, before: Sequence[float] | None = None
) -> Interval:
    """Return the median with its order-statistic interval; a time that was not reached is `math.inf`.

    The interval runs from the k-th smallest to the k-th largest value, with the largest k whose coverage,
    1 - 2 P(Binomial(n, 1/2) < k), is at least 95%: no assumption about the distribution, and infinite values keep their
    rank. Below 6 values no k is enough, and the range (k = 1) is given: see `coverage_of_range`. A bound that is not
    finite is None. `limit` is the largest time at which a run ended without arriving. `before` are the times of the
    evaluations before, at which nothing had arrived yet: the lower bound is one of these.
    """
    n, ranked = len(times), sorted(times)
    earlier = ranked if before is None else sorted(before)
    median = _finite(statistics.median(ranked)) if n else None
    low, high = None, None
    if n > 1:
        k = _interval_rank(n)
        low, high = _finite(earlier[k - 1]), _finite(ranked[n - k])
    missed = n - sum(map(math.isfinite, times))
    value = math.nan if median is None else median
    since = _finite(statistics.median(earlier)) if n and before is not None and median is not None else None
    return Interval(value, low, high, n, num_missed=missed, since=since, limit=limit, kind="median")


def coverage_of_range(n: int) -> float:
    """Return how often the range of `n` values covers the median: 1 - 2^(1 - n)."""
    return 1.0 - 2.0 ** (1 - n)


def restrict(times: Sequence[float], limits: Sequence[float]) -> list[float]:
    """Cut times at the smallest of `limits`: min(T, tau), whose mean is the restricted mean (Irwin 1949).

    Every run was watched up to tau, so the cut values are fully observed and their paired difference is an ordinary
    one: the time saved up to tau. What a run would still have needed after tau is left out.
    """
    tau = min(limits, default=math.inf)
    return [min(time, tau) for time in times]


# Planning


def detectable_difference(sd: float, n: int, level: float = 1 - LEVEL) -> float | None:
    """Return the smallest true difference that `n` pairs show at this level with 80% power; None below two pairs.

    (t_{1 - level / 2} + t_{0.80}) sd / sqrt(n), the usual approximation to the noncentral t: at 5% it is 14% too small
    at n = 2, 5% at 3, 1% at 5.
    """
    if n < 2:
        return None
    return (t_quantile(1 - level / 2, n - 1) + t_quantile(POWER, n - 1)) * sd / math.sqrt(n)


def pairs_needed(difference: float, sd: float, level: float = 1 - LEVEL) -> int | None:
    """Return the smallest n at which `detectable_difference` is at most `difference`; None above `MOST_PAIRS`."""
    size = abs(difference)
    normal = statistics.NormalDist()
    factor = normal.inv_cdf(1 - level / 2) + normal.inv_cdf(POWER)
    if size == 0.0 or (factor * sd / size) ** 2 > MOST_PAIRS:
        return None
    n = max(2, math.floor((factor * sd / size) ** 2))  # enough if sd were known; t asks for a few more
    while (detectable_difference(sd, n, level) or 0.0) > size:
        n += 1
    return n


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n - 1); either is 0 where it is only rounding of these numbers."""
    n = len(values)
    center = math.fsum(values) / n
    if n == 1:
        return center, 0.0
    sd = math.sqrt(math.fsum((v - center) ** 2 for v in values) / (n - 1))
    rounding = ROUNDING * max(map(abs, values))
    return 0.0 if abs(center) <= rounding else center, 0.0 if sd <= rounding else sd


def t_interval(center: float, sd: float, n: int, level: float = 1 - LEVEL) -> tuple[float, float]:
    """Return center -+ t_{1 - level / 2} sd / sqrt(n), the interval of a mean of `n` values, two or more."""
    half = t_quantile(1 - level / 2, n - 1) * sd / math.sqrt(n)
    return center - half, center + half


@lru_cache(maxsize=4096)
def _interval_rank(n: int) -> int:
    """Return the largest k with P(Binomial(n, 1/2) < k) <= 2.5%, at least 1."""
    below, k = 0, 0
    while k < n // 2 and (below := below + math.comb(n, k)) <= (1 - LEVEL) / 2 * 2**n:
        k += 1
    return max(k, 1)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
