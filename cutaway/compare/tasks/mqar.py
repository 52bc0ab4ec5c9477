"""Multi-query associative recall (2312.04927): keys with their values, then keys again, whose values are due.

Keys are from the vocabulary's first half, values from its second; a key occurs once among the pairs. Of the
gaps between a pair and its query short ones are likelier, by a power law. Fillers are random tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count, Positive
from cutaway.compare.task import ComparisonTask
from cutaway.errors import UserError
from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Config(ComparisonTask):
    """``pairs`` of key and value in ``length`` tokens of a vocabulary of ``size``."""

    length: Count = 64
    pairs: Count = 8
    size: Count = 8192
    power: Positive = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if 4 * self.pairs > self.length or self.pairs >= self.size // 2:
            raise UserError(
                f"mqar: {self.pairs} pairs need {4 * self.pairs} tokens and more than {2 * self.pairs} ids"
            )

    @property
    def vocab(self) -> int:
        return self.size

    @property
    def context(self) -> int:
        return self.length

    @property
    def chance(self) -> float:
        return 2 / self.size

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """The pairs, then queries among fillers; the token after a query is its value."""
        half = self.size // 2
        keys = random.choice(np.arange(1, half), self.pairs, replace=False)
        values = random.integers(half, self.size, self.pairs)
        ids = random.integers(1, self.size, self.length + 1)
        ids[0 : 2 * self.pairs : 2], ids[1 : 2 * self.pairs : 2] = keys, values
        slots = (self.length - 2 * self.pairs) // 2
        weights = self.power * np.arange(1, slots + 1, dtype=float) ** (self.power - 1)
        gaps = random.choice(slots, self.pairs, replace=False, p=weights / weights.sum())
        places = 2 * self.pairs + 2 * gaps
        ids[places], ids[places + 1] = keys, values
        scored = np.zeros(self.length, bool)
        scored[places] = True
        return ids, scored
