"""A detector's rate of catches at each rate of false positives: its threshold, and its curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutaway.security.finding import Curve

RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
X, Y = "false positives", "caught"


def threshold(negatives: np.ndarray, rate: float) -> float:
    """The score above which at most this share of the negatives [n] is."""
    ordered = np.sort(negatives)[::-1]
    return float(ordered[int(rate * len(ordered))])


def caught(negatives: np.ndarray, attacks: np.ndarray, rate: float) -> np.ndarray:
    """bool [m]: which attacks score above the threshold of that false-positive rate."""
    return attacks > threshold(negatives, rate)


def curve(name: str, negatives: np.ndarray, attacks: np.ndarray, rates: Sequence[float] = RATES) -> Curve:
    """The catch at each false-positive rate."""
    points = tuple((rate, float(caught(negatives, attacks, rate).mean())) for rate in rates)
    return Curve(name, X, Y, points)
