"""The tokens that a direction of the residual stream promotes and suppresses, by the output head."""

from __future__ import annotations

import numpy as np

from cutaway.inspect.arrays import largest
from cutaway.inspect.attribution import unembedded
from cutaway.inspect.instrumented import Instrumented

NUMBERS = 8 << 20  # scored at once: 32 MB


def promoted(
    engine: Instrumented, directions: np.ndarray, vocabulary: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ids [n count] whose logits directions [n d] raise most, and those that they lower most.

    The final norm's size is left out.
    """
    up, down = [], []
    at_once = max(1, NUMBERS // engine.config.vocab)
    for start in range(0, len(directions), at_once):
        scores = unembedded(engine, directions[start : start + at_once], vocabulary)
        up.append(largest(scores, count))
        down.append(largest(-scores, count))
    return np.concatenate(up), np.concatenate(down)
