"""Induction (2209.11895): random tokens, and the last one occurred before: what followed it there comes next.

One target is scored, the token after the repeated one. Attention needs two layers for it, or a convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count
from cutaway.compare.task import Letters
from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Config(Letters):
    """``length`` tokens of ``letters``; the trigger occurs once, in the first half."""

    length: Count = 48
    letters: Count = 32

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """Random letters, with the trigger 0 once early and once at the end."""
        ids = random.integers(1, self.letters + 1, self.length + 1)
        first = int(random.integers(0, self.length // 2))
        ids[first] = ids[-2] = 0
        ids[-1] = ids[first + 1]
        return ids, np.arange(self.length) == self.length - 1
