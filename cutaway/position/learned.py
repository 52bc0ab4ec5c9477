"""Learned positions (1705.03122, GPT-2): one trained vector a position, added to the token's embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import Bounded, Count, Natural

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Config(Bounded):
    """``size``: how many positions the table has; a position past it does not exist.

    ``offset`` is how many rows there are before the first (2 in OPT).
    """

    size: Count
    offset: Natural = 0

    def build(self, width: int) -> nn.Module:
        from torch import nn

        return nn.Embedding(self.size + self.offset, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        return {"weight": (self.size + self.offset, width)}
