"""Exact intervals of what is bounded, at any number of trials and at the very edges of the scale.

    proportion      Clopper and Pearson (1934): x of n, by the beta distributions of (x, n - x + 1) and
                    (x + 1, n - x)
    bounded mean    Gaffke (2005; 1905.06208): the mean of the values and of one more at the end of the scale,
                    under weights that are uniform on the simplex; its quantiles are the bounds

Of values 0 and 1 Gaffke's bounds are Clopper and Pearson's; of differences -1, 0 and 1 they leave 0 out where
the exact McNemar test does. They ask nothing of the values' distribution (none is known that they cover less
often than they say), and so cover in 97% to 100% of cases where values are few or nearly all equal: a
statistic of few possible values has no interval that covers in exactly 95%.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

LEVEL = 0.05
DRAWS, FEWEST, MOST = (
    400_000,
    2_000,
    20_000,
)  # weights drawn: for all groups of equal units, and at least, at most


def proportion(successes: int, n: int) -> tuple[float, float]:
    """The interval of a rate of which ``successes`` of ``n`` were seen."""
    low = beta_quantile(LEVEL / 2, successes, n - successes + 1) if successes else 0.0
    high = beta_quantile(1 - LEVEL / 2, successes + 1, n - successes) if successes < n else 1.0
    return low, high


def bounded(sums: np.ndarray, sizes: np.ndarray, low: float, high: float) -> tuple[float, float, float]:
    """The interval of a mean between ``low`` and ``high``, and the two-sided p of a mean of 0.

    A unit (a value, or a cluster of values) has a sum and a size. The one that is added has the mean size.
    """
    units, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    random = np.random.default_rng(0)
    draws = min(max(DRAWS // len(units), FEWEST), MOST)
    weights = random.standard_gamma(counts, (draws, len(units)))
    added = random.standard_exponential(draws) * sizes.mean()
    total, size = weights @ units[:, 0], weights @ units[:, 1] + added
    lower, upper = (total + added * low) / size, (total + added * high) / size
    beyond = min(np.mean(lower <= 0), np.mean(upper >= 0), 0.5)
    ends = float(np.quantile(lower, LEVEL / 2)), float(np.quantile(upper, 1 - LEVEL / 2))
    return *ends, max(2 * float(beyond), 1 / draws)


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p of as uneven a split of the questions that one of two models alone has right."""
    n, most = only_a + only_b, max(only_a, only_b)
    return min(1.0, 2 * beta_cdf(0.5, most, n - most + 1)) if n else 1.0


@lru_cache(maxsize=1 << 14)
def beta_quantile(q: float, a: float, b: float) -> float:
    """The ``q`` quantile of the beta distribution."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_cdf(middle, a, b) < q else (low, middle)
    return (low + high) / 2


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (DLMF 8.17.22), bottom up."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    terms = 40 + 4 * math.isqrt(int(max(a, b)))  # more than it needs to settle
    fraction = 1.0
    for m in range(terms, 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        fraction = 1 + odd / (1 + even / fraction)
    front = math.lgamma(a + b) - math.lgamma(a + 1) - math.lgamma(b)
    return math.exp(front + a * math.log(x) + b * math.log1p(-x)) / fraction
