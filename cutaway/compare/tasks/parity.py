"""Parity (1911.03329): after each bit, whether the number of ones so far is odd.

The smallest task that needs a state which every token may flip: attention of fixed depth and decaying sums
find it hard, a recurrence that may subtract does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count
from cutaway.compare.tasks import Task
from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Config(Task):
    """``length`` bits, each followed by the parity so far: ids 0 and 1 are bits, 2 and 3 are answers."""

    length: Count = 24

    @property
    def vocab(self) -> int:
        return 4

    @property
    def context(self) -> int:
        return 2 * self.length - 1

    @property
    def chance(self) -> float:
        return 0.5

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """Bits and parities in turn."""
        bits = random.integers(0, 2, self.length)
        ids = np.stack([bits, 2 + bits.cumsum() % 2], 1).ravel()
        return ids, np.arange(self.context) % 2 == 0
