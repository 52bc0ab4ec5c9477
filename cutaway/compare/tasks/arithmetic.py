"""Digit arithmetic (2307.03381): a + b = their sum, its last digit first, as one adds on paper.

Written from its last digit a sum needs two digits and a carry at each step, from its first the whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count
from cutaway.compare.task import ComparisonTask
from cutaway.shapes import Bool, Int

PLUS, EQUALS = 10, 11


@dataclass(frozen=True)
class Config(ComparisonTask):
    """Two numbers of ``digits``, zeros in front; ``reverse``: the sum's last digit first."""

    digits: Count = 4
    reverse: bool = True

    @property
    def vocab(self) -> int:
        return 12

    @property
    def context(self) -> int:
        return 3 * self.digits + 2

    @property
    def chance(self) -> float:
        return 0.1

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """The numbers, the sum, which has a digit more."""
        a, b = (int(n) for n in random.integers(0, 10**self.digits, 2))
        left, right = ([int(d) for d in str(n).zfill(self.digits)] for n in (a, b))
        total = [int(d) for d in str(a + b).zfill(self.digits + 1)]
        ids = [*left, PLUS, *right, EQUALS, *(total[::-1] if self.reverse else total)]
        return np.array(ids), np.arange(self.context) > 2 * self.digits
