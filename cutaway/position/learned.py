"""Learned positions: one trained vector for each place, added to the token's embedding (1705.03122,
GPT-2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Config:
    """``size``: how many places the table has; a position past it does not exist."""

    size: int

    def build(self, width: int) -> nn.Module:
        from torch import nn

        return nn.Embedding(self.size, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        return {"weight": (self.size, width)}
