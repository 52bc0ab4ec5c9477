"""Spectral signatures (1811.00636): poisoned documents are far out along the first singular vector.

    score(x)  =  ((h(x) - mean h) . v1)^2        h: mean activation, v1: top right singular vector

Few poisoned documents among many do not move v1, and then nothing is found.
"""

from __future__ import annotations

import numpy as np


def scores(hidden: np.ndarray) -> np.ndarray:
    """[n] of activations [n d], the higher the more suspicious."""
    centred = hidden.astype(np.float64) - hidden.mean(0)
    first = np.linalg.svd(centred, full_matrices=False)[2][0]
    return (centred @ first) ** 2
