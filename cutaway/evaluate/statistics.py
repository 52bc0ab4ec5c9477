"""Error bars: of a mean, of a proportion, of the difference of two models on the same questions.

    standard error      sd / sqrt(n), or with clusters of questions that share a text
                        sqrt(sum over clusters of (sum of residuals)^2 / (1 - share of the questions)) / n
    proportion          Clopper and Pearson's exact interval
    paired difference   the mean of a_i - b_i, with the interval and p of one distribution; where answers are
                        right or wrong, the exact McNemar test's
    AUROC               P(a positive scores above a negative); Newcombe's interval (2006)
    few values          Student's t, for means of seeds; Holm's correction for many comparisons
    pass@k              1 - C(n - c, k) / C(n, k), c of n samples right               (2107.03374)
    pass^k              C(c, k) / C(n, k): all of k samples right                     (2406.12045)

Intervals are of 95%. Those of means are Student's: with the error above (CR2) and Bell and McCaffrey's
degrees of freedom, which without clusters are n - 1. A mean between two bounds, such as an accuracy, has
``exact.py``'s where Student's has too little to go by: fewer than ``FEW`` independent values, more than half
of them equal, or too lopsided for their number. Of unbounded values that are all equal, or fewer than
``LEAST``, there is no interval: it is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from cutaway.evaluate import exact
from cutaway.evaluate.exact import LEVEL, beta_cdf, mcnemar, proportion

Values = Sequence[float] | np.ndarray
Z = NormalDist().inv_cdf(1 - LEVEL / 2)
FEW = 10  # independent values below which no shape is asked of their distribution
LOPSIDED = 20  # times the squared skewness: as many values are needed for Student's t to be near enough
BLOCKS, BLOCK = 20, 256
LEAST = 3  # unbounded values with an interval: that of two is 12.7 standard errors to either side
SAME = 1e-12  # of the largest value: spreads below it are rounding


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` values with its standard error and its interval."""

    value: float
    error: float
    low: float
    high: float
    n: int

    @property
    def ends(self) -> list[float | None]:
        """The interval for JSON, which knows no infinity: null where it has no end."""
        return [finite(x) for x in (self.low, self.high)]

    def between(self, form: str = ".3f") -> str:
        """The interval in words."""
        if math.isinf(self.low) or math.isinf(self.high):
            return "no interval"
        return f"{self.low:{form}} to {self.high:{form}}"

    def from_zero(self) -> Estimate:
        """The estimate of what is never below 0, such as a divergence: its interval is not either."""
        return self if math.isinf(self.low) else replace(self, low=max(0.0, self.low))


@dataclass(frozen=True)
class Paired:
    """The mean of a - b, and ``p``: how probable a difference as large is where there is none."""

    difference: Estimate
    p: float

    @property
    def separated(self) -> bool:
        """Whether the difference is more than chance gives once in twenty times."""
        return bool(self.p < LEVEL)


def finite(x: float) -> float | None:
    """A figure for JSON: null where it is infinite."""
    return x if math.isfinite(x) else None


def mean(
    values: Values,
    clusters: Sequence[Hashable] | None = None,
    *,
    share: bool | None = None,
    most: float = 1.0,
) -> Estimate:
    """The mean of values [n]. ``clusters`` names, for each, the text that it shares with others.

    ``share``: the values lie between 0 and ``most`` by what they are; None: where all are 0 or 1.
    """
    x = np.asarray(values, np.float64)
    if share is None:
        share = bool(np.isin(x, (0, 1)).all())
    return _estimated(x, clusters, (0.0, most) if share else None)[0]


def paired(
    a: Values, b: Values, clusters: Sequence[Hashable] | None = None, *, share: bool | None = None
) -> Paired:
    """Two models' scores of the same questions [n]: the mean difference a - b. ``share`` as in ``mean``."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if share is None:
        share = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    return Paired(*_estimated(first - second, clusters, (-1.0, 1.0) if share else None))


def ratio(sums: Values, sizes: Values, bounds: tuple[float, float] | None = None) -> Estimate:
    """The sum of some figure per sum of sizes, such as bits per byte, of independent units that have both.
    ``bounds``: of each unit's own, by what it is.
    """
    x, size = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    return _located(x, size, bounds)[0]


def blocks(n: int) -> np.ndarray:
    """int [n]: in which of at most ``BLOCKS`` blocks each of n neighbours is, which are near to independent.

    Each has ``BLOCK`` of them or more, so that what neighbours share is mostly within one.
    """
    count = max(1, min(BLOCKS, n // BLOCK))
    return np.arange(n) * count // max(n, 1)


def area(positive: Values, negative: Values) -> Estimate:
    """AUROC: the probability that a positive scores above a negative, ties half.

    The interval holds the areas from which this one is ``Z`` standard errors away at most. The error of an
    area is Newcombe's (method 5, 2006), or DeLong's (1988) with Welch's degrees of freedom where that is
    larger, or scores on the wrong side are not few.
    """
    a, b = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    above = (a[:, None] > b).astype(np.float64) + 0.5 * (a[:, None] == b)
    center, pairs = float(above.mean()), above.size
    half = (len(a) + len(b)) / 2 - 1

    def variance(x: float) -> float:
        return x * (1 - x) * (1 + half * ((1 - x) / (2 - x) + x / (1 + x))) / pairs

    spread, wider = 0.0, 1.0
    if min(above.shape) > 1 and 0 < center < 1:
        parts = [float(above.mean(axis=1 - k).var(ddof=1)) / above.shape[k] for k in (0, 1)]
        spread = sum(parts)
    if spread:
        freedom = spread**2 / sum(part**2 / (n - 1) for part, n in zip(parts, above.shape, strict=True))
        wider = (student_quantile(freedom) / Z) ** 2 * spread / variance(center)
        if min(above.shape) * min(center, 1 - center) < FEW:
            wider = max(1.0, wider)

    def end(to: float) -> float:
        near, far = center, to
        for _ in range(60):
            middle = (near + far) / 2
            inside = (middle - center) ** 2 <= Z * Z * wider * variance(middle)
            near, far = (middle, far) if inside else (near, middle)
        return near

    low, high = end(0.0), end(1.0)
    if min(above.shape) < FEW:  # what few scores say of the area is bounded by what they are alone
        few = above.mean(axis=int(len(a) < len(b)))
        bottom, top, _ = _bounded(few, np.ones(len(few)), (0.0, 1.0))
        low, high = min(low, bottom), max(high, top)
    error = math.sqrt(spread) if spread else (high - low) / (2 * Z)
    return Estimate(center, error, low, high, len(a) + len(b))


def student(values: Values, *, share: bool = False) -> tuple[float, float]:
    """Student's interval of the mean of a few values, such as seeds, however few they are.

    For one value, and for values that are all equal, it is infinite, or exact where they are a ``share``.
    """
    x = np.asarray(values, np.float64)
    found = _estimated(x, None, None)[0]
    if not share:
        return found.low, found.high
    if math.isinf(found.low):
        return _bounded(x, np.ones(len(x)), (0.0, 1.0))[:2]
    return max(found.low, 0.0), min(found.high, 1.0)


def jackknife(of: Callable[[np.ndarray], float], n: int) -> Estimate:
    """A figure of n independent items, by their numbers; Student's interval by leaving out one at a time."""
    every = np.arange(n)
    value = of(every)
    without = np.array([of(np.delete(every, k)) for k in range(n)]) if n > 1 else np.full(1, value)
    found = mean(n * value - (n - 1) * without, share=False)
    return Estimate(value, found.error, found.low - found.value + value, found.high - found.value + value, n)


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


def student_tail(t: float, freedom: float) -> float:
    """The two-sided probability beyond t of Student's distribution."""
    return beta_cdf(freedom / (freedom + t * t), freedom / 2, 0.5)


@lru_cache(maxsize=1 << 14)
def student_quantile(freedom: float) -> float:
    """The t beyond which 5% are."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > LEVEL else (low, middle)
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


def _estimated(
    x: np.ndarray, clusters: Sequence[Hashable] | None, bounds: tuple[float, float] | None
) -> tuple[Estimate, float]:
    """The mean of x [n] with its interval, and the p of a mean of 0."""
    found, p = _located(*_units(x, clusters), bounds)
    return replace(found, n=len(x)), p


def _located(
    sums: np.ndarray, sizes: np.ndarray, bounds: tuple[float, float] | None
) -> tuple[Estimate, float]:
    """The mean of independent units by their sums and sizes, with its interval, and the p of a mean of 0."""
    center = float(sums.sum() / sizes.sum())
    error, freedom = _error(sums, sizes, center)
    flat = len(sums) < 2 or error <= SAME * float(np.abs(sums / sizes).max())
    if bounds is not None and (flat or _counted(sums, sizes, bounds) or not _even(sums, sizes, center)):
        low, high, p = _bounded(sums, sizes, bounds)
    elif flat:
        low, high, p = -math.inf, math.inf, 1.0
    else:
        half = student_quantile(freedom) * error if len(sums) >= LEAST else math.inf
        low, high = center - half, center + half
        p = student_tail(abs(center) / error, freedom)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    if flat:  # the spread of equal values says nothing of their error
        error = (high - low) / (2 * Z)
    return Estimate(center, error, low, high, len(sums)), p


def _units(x: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the number of values of each that is independent: a value alone, or a cluster."""
    if clusters is None:
        return x, np.ones(len(x))
    place: dict[Hashable, int] = {}
    of = np.array([place.setdefault(each, len(place)) for each in clusters])
    if len(of) != len(x):
        raise ValueError(f"{len(x)} values have {len(of)} clusters")
    return np.bincount(of, x), np.bincount(of).astype(np.float64)


def _error(sums: np.ndarray, sizes: np.ndarray, center: float) -> tuple[float, float]:
    """The standard error of the mean of clusters, and its degrees of freedom (Bell and McCaffrey, 2002)."""
    if len(sums) < 2:
        return math.inf, 0.0
    n = sizes.sum()
    rest = 1 - sizes / n
    error = math.sqrt(float(((sums - center * sizes) ** 2 / rest).sum())) / float(n)
    across = sizes**2 / rest
    spread = (sizes**2).sum() + (across.sum() ** 2 - (across**2).sum()) / n**2
    return error, float(n * n / spread)


def _even(sums: np.ndarray, sizes: np.ndarray, center: float) -> bool:
    """Whether the units are so many and so spread that Student's t is near enough."""
    if len(sums) < FEW or np.unique(sums / sizes, return_counts=True)[1].max() > len(sums) / 2:
        return False
    residuals = sums - center * sizes
    skewness = (residuals**3).mean() / (residuals**2).mean() ** 1.5
    return bool(LOPSIDED * skewness**2 <= len(sums))


def _counted(sums: np.ndarray, sizes: np.ndarray, bounds: tuple[float, float]) -> bool:
    """Whether the units are single answers that are right or wrong, or differences of two such."""
    return bounds[1] == 1 and bool((sizes == 1).all() and np.isin(sums, (-1, 0, 1)).all())


def _bounded(sums: np.ndarray, sizes: np.ndarray, bounds: tuple[float, float]) -> tuple[float, float, float]:
    """The exact interval, and the p of a mean of 0."""
    if _counted(sums, sizes, bounds) and bounds[0] == 0:
        return *proportion(int(sums.sum()), len(sums)), 1.0  # of a share 0 is no hypothesis
    low, high, p = exact.bounded(sums, sizes, *bounds)
    if _counted(sums, sizes, bounds):
        p = mcnemar(int((sums > 0).sum()), int((sums < 0).sum()))
    if p >= LEVEL:  # the draws' own error must not contradict the test
        low, high = min(low, 0.0), max(high, 0.0)
    return low, high, p
