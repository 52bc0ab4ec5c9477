"""A factorised table (ALBERT, 1909.11942): few numbers a token, and one matrix that widens them.

row(i) = E[i] P,    E [v r], P [r d]: v r + r d numbers instead of v d
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Config:
    """``rank``: numbers a token."""

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"a table of rank {self.rank} holds nothing: give 1 or more")

    def build(self, vocab: int, width: int) -> nn.Module:
        from cutaway.embedding.tables.modules import LowRank

        return LowRank(vocab, width, self.rank)

    def weights(self, vocab: int, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        return {"rows": (vocab, self.rank), "widen": (self.rank, width)}
