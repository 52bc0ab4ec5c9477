"""Hash embeddings (1709.03933): a token's row is a weighted sum of a few shared rows, which hashes pick.

    row(i) = sum over k of p[i, k] B[h_k(i)],    B [n d], p [v k]: n d + v k numbers instead of v d

Two tokens that share one bucket seldom share all, and what is learned of p distinguishes them where they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import Bounded, Count

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Config(Bounded):
    """``buckets``: how many rows there are; ``hashes``: how many make a token's."""

    buckets: Count
    hashes: Count = 2

    def build(self, vocab: int, width: int) -> nn.Module:
        from cutaway.embedding.tables.modules import Hashed

        return Hashed(vocab, width, self.buckets, self.hashes)

    def weights(self, vocab: int, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        return {"shared": (self.buckets, width), "importance": (vocab, self.hashes)}
