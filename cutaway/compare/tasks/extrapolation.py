"""Length extrapolation: copying texts of up to ``length`` letters is learned, of ``longest`` is tested.

What a position encoding does past the positions that it was trained on decides it (2108.12409, 2305.19466).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cutaway.bounds import Count
from cutaway.compare.task import Letters
from cutaway.errors import UserError
from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Config(Letters):
    """``shortest`` to ``length`` letters of an alphabet of ``letters``; id 0 is the marker and the end."""

    length: Count = 16
    longest: Count = 32
    letters: Count = 26
    shortest: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shortest <= self.length <= self.longest:
            raise UserError(
                f"extrapolation: shortest {self.shortest}, length {self.length} and longest {self.longest} "
                "must rise"
            )

    @property
    def context(self) -> int:
        return 2 * self.length

    @property
    def held_out(self) -> Config:
        return replace(self, shortest=self.longest, length=self.longest)

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """A text, the marker, the text, and ends up to the row's."""
        count = int(random.integers(self.shortest, self.length + 1))
        text, ids = random.integers(1, self.letters + 1, count), np.zeros(self.context + 1, np.int64)
        ids[:count] = ids[count + 1 : 2 * count + 1] = text
        place = np.arange(self.context)
        return ids, (place >= count) & (place < 2 * count)
