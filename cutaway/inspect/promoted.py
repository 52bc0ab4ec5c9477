"""The tokens that a direction of the residual stream promotes and suppresses, by the output head."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cutaway.inspect.arrays import largest
from cutaway.inspect.attribution import unembedded
from cutaway.inspect.instrumented import Instrumented

NUMBERS = 8 << 20  # scored at once: 32 MB


class Tokens(NamedTuple):
    """Tokens for each of some directions, the most moved first: ids [n count], and their logits' change."""

    ids: np.ndarray
    scores: np.ndarray


def promoted(
    engine: Instrumented, directions: np.ndarray, vocabulary: int, count: int
) -> tuple[Tokens, Tokens]:
    """The tokens whose logits directions [n d] raise most, and those that they lower most.

    The final norm's size is left out.
    """
    sides: tuple[list[Tokens], list[Tokens]] = [], []
    at_once = max(1, NUMBERS // engine.config.vocab)
    for start in range(0, len(directions), at_once):
        scores = unembedded(engine, directions[start : start + at_once], vocabulary)
        for side, ids in zip(sides, (largest(scores, count), largest(-scores, count)), strict=True):
            side.append(Tokens(ids, np.take_along_axis(scores, ids, 1)))
    raised, lowered = (Tokens(*map(np.concatenate, zip(*side, strict=True))) for side in sides)
    return raised, lowered
