"""Copying (2402.01032): a random text, a marker, and the same text again. Only the copy is scored.

It needs a state as large as the text: attention copies what it can look up, a fixed state forgets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count
from cutaway.compare.task import Letters
from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Config(Letters):
    """``length`` letters of an alphabet of ``letters``."""

    length: Count = 24
    letters: Count = 26

    @property
    def context(self) -> int:
        return 2 * self.length

    @property
    def source(self) -> int:
        return self.length

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """A text, the marker, the text."""
        text = random.integers(1, self.letters + 1, self.length)
        ids = np.concatenate([text, [0], text])
        return ids, np.arange(self.context) >= self.length
