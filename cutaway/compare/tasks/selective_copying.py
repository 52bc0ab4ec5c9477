"""Selective copying (2312.00752): letters are scattered among blanks; then they are due, in their order.

What a state keeps must depend on what is read: a filter of fixed timing cannot tell letters from blanks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count
from cutaway.compare.task import Letters
from cutaway.errors import UserError
from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Config(Letters):
    """``count`` letters among ``length`` places; id 0 is a blank, 1 asks for the letters."""

    length: Count = 48
    count: Count = 8
    letters: Count = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count > self.length:
            raise UserError(f"selective_copying: {self.count} letters do not fit {self.length} places")

    @property
    def vocab(self) -> int:
        return self.letters + 2

    @property
    def context(self) -> int:
        return self.length + self.count

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """Places with letters and blanks, the question, the letters."""
        letters = random.integers(2, self.letters + 2, self.count)
        places = np.zeros(self.length, np.int64)
        places[np.sort(random.choice(self.length, self.count, replace=False))] = letters
        return np.concatenate([places, [1], letters]), np.arange(self.context) >= self.length
