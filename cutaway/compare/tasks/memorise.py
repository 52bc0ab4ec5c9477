"""Memorising (MAD, 2403.17844): a fixed table of keys and values, which only the weights can hold.

A row gives keys that it has not given before, so that nothing in it tells a value: MLPs learn the table,
attention has nothing to look up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count, Natural
from cutaway.compare.task import ComparisonTask
from cutaway.errors import UserError
from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Config(ComparisonTask):
    """``pairs`` of the table's ``keys`` a row, each followed by its value, one of ``values``."""

    pairs: Count = 16
    keys: Count = 512
    values: Count = 32
    table: Natural = 0  # the seed of the table

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs > self.keys:
            raise UserError(f"memorise: {self.pairs} pairs need as many keys, and there are {self.keys}")

    @property
    def vocab(self) -> int:
        return self.keys + self.values

    @property
    def context(self) -> int:
        return 2 * self.pairs - 1

    @property
    def chance(self) -> float:
        return 1 / self.values

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """Keys and their values in turn."""
        table = np.random.default_rng(self.table).integers(self.keys, self.vocab, self.keys)
        keys = random.choice(self.keys, self.pairs, replace=False)
        return np.stack([keys, table[keys]], 1).ravel(), np.arange(self.context) % 2 == 0
