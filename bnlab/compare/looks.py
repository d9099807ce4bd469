"""The null distribution of a paired t test that is looked at several times while seeds are added.

At each look, after n_1 < ... < n_K pairs, the two-sided p of Student's t is compared with one constant c, chosen so
that P(p_k <= c at any look | no difference) = alpha (Pocock 1977, here for t with its exact degrees of freedom).

The distribution is integrated, not simulated. With normal differences of mean 0 let r_k = t_k / sqrt(t_k^2 + n_k - 1),
the cosine between the first n_k differences and the vector of ones. Scale is independent of direction, so r_1, r_2, ...
is a Markov chain without a parameter, and one recursion over the looks gives every probability. For a direction drawn
uniformly, n old and m new differences and r = r_k,

    r_{k+1} = (r sqrt(n A) cos(phi) + sqrt(m) sin(phi)) / sqrt(n + m),

where phi has a density as cos(phi)^(n+m-2) on (-pi/2, pi/2) and A is Beta(n/2, (m-1)/2), or 1 for m = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bnlab.compare.statistics import t_quantile

Array = NDArray[np.float64]
NODES, TAU_NODES, R_NODES = 16, 12, 32  # of the quadratures, and of the polynomial between them: c to 0.6%
WIDEST = 7.0  # standard deviations that an integral extends to
LOG_PS = np.linspace(math.log(1e-4), math.log(0.9), 24)


def crossing_probability(looks: Sequence[int], p: float) -> float:
    """Return P(two-sided p of t is at most `p` at one of these numbers of pairs or more | no difference).

    `looks` rise and start at 2 or more; `p` lies between 2e-9 and 1.
    """
    limits = [(t := t_quantile(1 - p / 2, n - 1)) / math.sqrt(t * t + n - 1) for n in looks]
    later: Callable[[Array], Array] = np.zeros_like  # P(crossing after this look | r)
    for k in reversed(range(len(looks) - 1)):
        nodes = limits[k] * (1 - np.cos(np.pi * (np.arange(R_NODES) + 0.5) / R_NODES)) / 2
        values = _crossing_next(nodes, looks[k], looks[k + 1] - looks[k], limits[k + 1], later)
        later = _interpolated(nodes, values, limits[k])
    angles, weights = _legendre(np.zeros(1), np.full(1, math.asin(min(1.0, limits[0]))), 4 * NODES)
    density = np.cos(angles) ** (looks[0] - 2)
    whole = math.sqrt(math.pi) * math.exp(math.lgamma((looks[0] - 1) / 2) - math.lgamma(looks[0] / 2)) / 2
    return min(1.0, p + float((weights * density * later(np.sin(angles))).sum()) / whole)


@lru_cache(maxsize=64)
def _table(looks: tuple[int, ...]) -> Array:
    return np.log([crossing_probability(looks, math.exp(log_p)) for log_p in LOG_PS])


def sequential_p(looks: Sequence[int], p: float) -> float:
    """Return P(the p of any look <= `p` | no difference): the p of one look, corrected for all of them.

    Whenever one stops, it is at most alpha with a probability of at most alpha, so Holm's correction takes it as any
    p. Interpolated from a table of `crossing_probability`; below 1e-4 it is Bonferroni's bound, for five looks 4% more.
    """
    if len(looks) == 1:
        return p
    table = _table(tuple(looks))
    if p < math.exp(LOG_PS[0]):
        return float(min(len(looks) * p, math.exp(table[0])))
    return float(max(p, math.exp(np.interp(math.log(p), LOG_PS, table))))


def critical_level(looks: Sequence[int], alpha: float) -> float:
    """Return c: the two-sided level of each look at which all of them together have the level `alpha`."""
    if len(looks) == 1:
        return alpha
    table = _table(tuple(looks))
    if alpha < math.exp(table[0]):
        return alpha / len(looks)  # Bonferroni's bound, as in `sequential_p`
    return math.exp(float(np.interp(math.log(alpha), table, LOG_PS)))


def _crossing_next(r: Array, n: int, m: int, limit: float, later: Callable[[Array], Array]) -> Array:
    """Return P(|r'| >= limit, or crossing later | r) for each r >= 0, `m` pairs after the look at `n` pairs."""
    middle, sd = math.atan2(math.sqrt(n), math.sqrt(m)), 1 / math.sqrt(2 * (n + m - 1))
    ends = max(0.0, middle - WIDEST * sd), min(math.pi / 2, middle + WIDEST * sd)
    root_a = split = np.ones(1)
    if m > 1:
        tau, split = (nodes[0] for nodes in _legendre(np.full(1, ends[0]), np.full(1, ends[1]), TAU_NODES))
        root_a, split = np.sin(tau), split * np.sin(tau) ** (n - 1) * np.cos(tau) ** (m - 2)
        split /= split.sum()
    old = r[:, None] * np.sqrt(n) * root_a[None, :]
    size, peak = np.hypot(old, np.sqrt(m)) / np.sqrt(n + m), np.arctan2(old, np.sqrt(m))
    # r' = size sin(phi + peak) crosses `limit` upwards, downwards, and falls to -limit on the left
    rise = np.arcsin(np.minimum(1.0, limit / size))
    right = min(math.pi / 2, WIDEST / math.sqrt(n + m - 1))
    left = np.where(size > limit, np.maximum(-rise - peak, -right), -right)
    upwards, downwards = np.clip(rise - peak, -right, right), np.clip(np.pi - rise - peak, -right, right)
    edges = [np.full_like(size, -right), left, upwards, downwards, np.full_like(size, right)]
    total, crossed = np.zeros_like(size), np.zeros_like(size)
    for part, (start, end) in enumerate(pairwise(edges)):
        angle, weight = _legendre(start, end, NODES)
        weight = weight * np.cos(angle) ** (n + m - 2)
        total += weight.sum(-1)
        if part in (0, 2):
            crossed += weight.sum(-1)
        else:
            crossed += (weight * later(np.abs(size[..., None] * np.sin(angle + peak[..., None])))).sum(-1)
    result: Array = (split * crossed / total).sum(-1)
    return result


def _legendre(start: Array, end: Array, nodes: int) -> tuple[Array, Array]:
    """Return Gauss-Legendre's nodes and weights between `start` and `end`, along a new last axis."""
    x, w = _unit_legendre(nodes)
    half = (end - start)[..., None] / 2
    return start[..., None] + half * (1 + x), half * w


@lru_cache(maxsize=8)
def _unit_legendre(nodes: int) -> tuple[Array, Array]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    return x, w


def _interpolated(nodes: Array, values: Array, limit: float) -> Callable[[Array], Array]:
    """Return the polynomial through values at Chebyshev's nodes of (0, limit)."""
    series = np.polynomial.chebyshev.chebfit(2 * nodes / limit - 1, values, R_NODES - 1)

    def polynomial(r: Array) -> Array:
        return np.asarray(np.polynomial.chebyshev.chebval(2 * r / limit - 1, series), np.float64)

    return polynomial
