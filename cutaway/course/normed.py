"""Properties of normed vectors, for exercises 8.1 and 8.7: a size of its own, and squares of mean 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from cutaway.course.exercise import Arguments, Property

ONE_SIZE = "all vectors are divided by one number: each has a size of its own"
MEAN_1 = "after the norm, before its weight, a vector's squares should have mean 1"


def _before_the_weight(arguments: Arguments, result: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """The vectors, the same normed and without the weight, and eps; a lens's logits are solved for them."""
    x, weight, *unembed, eps = arguments
    if unembed:
        result = np.linalg.lstsq(unembed[0], np.transpose(result), rcond=None)[0].T
    return x, result / weight, eps


def _each_has_its_own_size(arguments: Arguments, result: Any) -> bool:
    x, normed, _ = _before_the_weight(arguments, result)
    shrunk = (normed**2).sum(-1) / (x**2).sum(-1)
    return len(x) == 1 or not np.allclose(shrunk, shrunk[0], rtol=1e-6)


def _squares_have_mean_1(arguments: Arguments, result: Any) -> bool:
    x, normed, eps = _before_the_weight(arguments, result)
    is_small = (x**2).mean(-1).min() < 1000 * eps  # there eps counts
    return bool(is_small or np.allclose((normed**2).mean(-1), 1, atol=0.01))


SIZES = (Property(ONE_SIZE, _each_has_its_own_size), Property(MEAN_1, _squares_have_mean_1))
