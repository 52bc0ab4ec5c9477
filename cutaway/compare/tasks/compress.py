"""Compression (MAD, 2403.17844): a random text, and a marker whose state alone must give the text back.

The text is read from the marker's last state by `train/objectives/compression.py`, so that what an arm knows
of the text has passed through one vector, however much its cache holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count
from cutaway.compare.task import Letters
from cutaway.shapes import Bool, Int
from cutaway.train.objectives import compression


@dataclass(frozen=True)
class Config(Letters):
    """``length`` letters of an alphabet of ``letters``; id 0 is the marker, which also begins a row."""

    length: Count = 16
    letters: Count = 16

    @property
    def context(self) -> int:
        return self.length + 2

    @property
    def objective(self) -> compression.Config:
        return compression.Config(length=self.length)

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """The marker, the text, the marker; the text's letters are what is to be read back."""
        ids = np.zeros(self.context + 1, np.int64)
        ids[1 : self.length + 1] = random.integers(1, self.vocab, self.length)
        return ids, np.arange(self.context) < self.length
