"""Error bars: of a mean, of a proportion, of the difference of two models on the same questions.

    standard error      sd / sqrt(n), or with clusters of questions that share a text
                        sqrt(sum over clusters of (sum of residuals)^2) / n          (Miller, 2411.00640)
    proportion          Wilson's interval, which holds for few questions and near 0 and 1 too
    paired difference   the mean of a_i - b_i with its own standard error; the exact McNemar test
    AUROC               P(a positive scores above a negative); DeLong's standard error
    few values          Student's t, for means of seeds; Holm's correction for many comparisons
    pass@k              1 - C(n - c, k) / C(n, k), c of n samples right               (2107.03374)
    pass^k              C(c, k) / C(n, k): all of k samples right                     (2406.12045)

Intervals are of 95%. Those of means are Student's, with as many degrees of freedom as values or clusters less
one; AUROC's is normal on the scale of log-odds, so that it stays between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

Values = Sequence[float] | np.ndarray
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` values with its standard error and its interval."""

    value: float
    error: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """The mean of a - b, and ``p``: how probable a difference as large is where there is none."""

    difference: Estimate
    p: float

    @property
    def separated(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.difference.low > 0 or self.difference.high < 0


def mean(values: Values, clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of values [n]. ``clusters`` names, for each, the text that it shares with others.

    Values that are all 0 or 1, unclustered, have Wilson's interval; clustered, one that ends at 0 and 1.
    """
    x = np.asarray(values, np.float64)
    n, center = len(x), float(x.mean())
    shared = clusters is not None and len(set(clusters)) < n
    error = _error(x - center, clusters if shared else None)
    shares = bool(np.isin(x, (0, 1)).all())
    if shares and not shared:
        low, high = wilson(int(x.sum()), n)
    else:
        low, high = interval(center, error, len(set(clusters)) if shared and clusters else n)
    if shares:
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(center, error, low, high, n)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The interval of a proportion (Wilson, 1927)."""
    p, z2 = successes / n, Z * Z / n
    center = (p + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(p * (1 - p) / n + z2 / (4 * n))
    return max(0.0, center - half), min(1.0, center + half)


def paired(a: Values, b: Values, clusters: Sequence[Hashable] | None = None) -> Paired:
    """Two models' scores of the same questions [n]: the mean difference a - b."""
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    center = float(d.mean())
    shared = clusters if clusters is not None and len(set(clusters)) < len(d) else None
    error = _error(d - center, shared)
    found = Estimate(center, error, *interval(center, error, len(set(shared)) if shared else len(d)), len(d))
    if shared is None and np.isin(d, (-1, 0, 1)).all():
        return Paired(found, mcnemar(int((d > 0).sum()), int((d < 0).sum())))
    return Paired(found, 1.0 if not error else 2 * NormalDist().cdf(-abs(center / error)))


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p of as uneven a split of the questions that one of two models alone has right."""
    n, few = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)


def area(positive: Values, negative: Values) -> Estimate:
    """AUROC: the probability that a positive scores above a negative, ties half; DeLong's interval (1988)."""
    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    above = (a[:, None] > b).astype(np.float64) + 0.5 * (a[:, None] == b)
    center = float(above.mean())
    rows, columns = above.mean(axis=1), above.mean(axis=0)
    error = math.hypot(_error(rows - center, None), _error(columns - center, None))
    if not 0 < center < 1:
        return Estimate(center, error, center, center, len(a) + len(b))
    odds, half = math.log(center / (1 - center)), Z * error / (center * (1 - center))
    low, high = (1 / (1 + math.exp(-x)) for x in (odds - half, odds + half))
    return Estimate(center, error, low, high, len(a) + len(b))


def student(values: Values) -> tuple[float, float]:
    """Student's interval of the mean of a few values: unbounded for one."""
    n, center = len(values), float(np.mean(values))
    half = student_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return center - half, center + half


def paired_t(a: Values, b: Values) -> float:
    """The two-sided p of the paired t-test; 1 where nothing differs, or one pair is all there is.

    Where all pairs differ by as much, as shares of few questions may, their spread says nothing: it is the
    sign test's.
    """
    d = np.subtract(a, b)
    if len(d) < 2 or not d.any():
        return 1.0
    if np.ptp(d) <= 1e-9 * np.abs(d).max():
        return 2.0 ** (1 - len(d))
    error = float(np.std(d, ddof=1)) / math.sqrt(len(d))
    return student_tail(abs(float(d.mean())) / error, len(d) - 1)


def student_tail(t: float, freedom: int) -> float:
    """The two-sided probability beyond t of Student's distribution, integrated over atan(t / sqrt n)."""
    angle = math.atan(t / math.sqrt(freedom))
    x = np.linspace(0, angle, 20001)
    inside = float(np.trapezoid(np.cos(x) ** (freedom - 1), x))
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return max(0.0, 1 - 2 * scale * inside)


@cache
def student_quantile(freedom: int) -> float:
    """The t beyond which 5% are."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > 0.05 else (low, middle)
    return high


def holm(p: Sequence[float]) -> list[float]:
    """P-values of several comparisons, corrected for their number (Holm, 1979)."""
    out, most = [0.0] * len(p), 0.0
    for place, n in enumerate(sorted(range(len(p)), key=lambda n: p[n])):
        most = max(most, min(1.0, (len(p) - place) * p[n]))
        out[n] = most
    return out


def pass_at(n: int, right: int, k: int) -> float:
    """The probability that one of k samples is right, of n that were drawn of which ``right`` are."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def pass_all(n: int, right: int, k: int) -> float:
    """The probability that all of k samples are right."""
    return math.comb(right, k) / math.comb(n, k)


def interval(center: float, error: float, independent: int) -> tuple[float, float]:
    """Student's interval of a mean of so many values, or clusters of values."""
    if independent < 2 or not math.isfinite(error):
        return -math.inf, math.inf
    half = (Z if independent > 1000 else student_quantile(independent - 1)) * error
    return center - half, center + half


def _error(residuals: np.ndarray, clusters: Sequence[Hashable] | None) -> float:
    n = len(residuals)
    if n < 2:
        return math.inf
    if clusters is None:
        return float(np.sqrt((residuals**2).sum() / (n - 1) / n))
    sums: dict[Hashable, float] = {}
    for residual, cluster in zip(residuals.tolist(), clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + residual
    count = len(sums)
    return math.sqrt(sum(s * s for s in sums.values()) * count / max(count - 1, 1)) / n
