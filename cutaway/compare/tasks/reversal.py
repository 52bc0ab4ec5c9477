"""Reversal: a random text, a marker, and the text from its end. Only the reversed text is scored.

Unlike in a copy, the distance to what is due changes with each token. An encoder-decoder reads the text as
its source and writes from the marker on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.compare.tasks import copying
from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Config(copying.Config):
    """``length`` letters of an alphabet of ``letters``."""

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """A text, the marker, the text reversed."""
        ids, scored = super().row(random)
        ids[self.length + 1 :] = ids[: self.length][::-1]
        return ids, scored
