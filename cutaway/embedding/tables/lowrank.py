"""A factorised table (ALBERT, 1909.11942): few numbers a token, and one matrix that widens them.

row(i) = E[i] P,    E [v r], P [r d]: v r + r d numbers instead of v d
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import Bounded, Count

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Config(Bounded):
    """``rank``: numbers a token."""

    rank: Count

    def build(self, vocab: int, width: int) -> nn.Module:
        from cutaway.embedding.tables.modules import LowRank

        return LowRank(vocab, width, self.rank)

    def weights(self, vocab: int, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        return {"rows": (vocab, self.rank), "widen": (self.rank, width)}
