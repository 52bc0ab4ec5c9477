"""Parity (1911.03329): after all bits, whether the number of ones is odd.

The smallest task that needs a state which every token may flip: attention of fixed depth and decaying sums
find it hard, a recurrence that may subtract does not. The parities of the bits so far are not in the row:
beside them, each answer would follow from two tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count
from cutaway.compare.task import ComparisonTask
from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Config(ComparisonTask):
    """``length`` bits and their parity: ids 0 and 1 are bits, 2 and 3 are answers."""

    length: Count = 12

    @property
    def vocab(self) -> int:
        return 4

    @property
    def context(self) -> int:
        return self.length

    @property
    def chance(self) -> float:
        return 0.5

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """Bits, and the parity of all."""
        bits = random.integers(0, 2, self.length)
        return np.append(bits, 2 + bits.sum() % 2), np.arange(self.context) == self.context - 1
