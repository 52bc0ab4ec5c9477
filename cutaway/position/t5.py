"""T5's relative positions (1910.10683): a learned score for each head and bucket of distances.

Near distances have a bucket each; farther ones share buckets whose width grows as their logarithm, up to
``distance``, past which all are one. T5 does not divide scores by sqrt(k): its configs give ``scale`` 1. T5
has one table for all layers, UMT5 one a layer, as here; T5's is the same table in each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count
from cutaway.building import Buildable
from cutaway.errors import UserError


@dataclass(frozen=True)
class Config(Buildable):
    """``both_ways``: half of the buckets are for keys that come after the query (encoders)."""

    module = "cutaway.position.bias:Buckets"

    buckets: Count = 32
    distance: Count = 128
    both_ways: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 4 if self.both_ways else 2
        if self.buckets < least:
            raise UserError(f"position.buckets is {self.buckets}; it must be {least} or more")
        exact = self.buckets // least
        if self.distance <= exact:
            raise UserError(f"position.distance is {self.distance}; it must be more than {exact}")

    def bucket(self, offset: np.ndarray) -> np.ndarray:
        """The buckets of keys that are ``offset`` tokens after the query, without PyTorch."""
        buckets, first = self.buckets, np.zeros_like(offset)
        apart = np.maximum(-offset, 0)
        if self.both_ways:
            buckets //= 2
            first, apart = (offset > 0) * buckets, np.abs(offset)
        exact = buckets // 2
        wide = np.log(np.maximum(apart, 1).astype(np.float32) / np.float32(exact))
        wide = wide / np.float32(math.log(self.distance / exact)) * np.float32(buckets - exact)
        far = np.minimum(exact + wide.astype(np.int64), buckets - 1)
        return first + np.where(apart < exact, apart, far)

    def weights(self, heads: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        return {"weight": (self.buckets, heads)}
