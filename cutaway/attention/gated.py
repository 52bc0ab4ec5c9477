"""Gated attention (2505.06708, Qwen3-Next): what the heads read is let through number by number by a gate
of its own.

    out = W_o ( [o_1 ... o_h] * sigmoid(W_g x) )

A head with nothing to say closes its gate, where otherwise it would park its attention on the first token:
models with gates have no attention sink. The gate costs one matrix and nothing in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.attention import gqa
from cutaway.attention.parts.cost import SOFTMAX

if TYPE_CHECKING:
    from torch import nn


COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """Grouped-query heads behind gates."""

    def build(self, width: int) -> nn.Module:
        from cutaway.attention.parts.gated import GatedAttention

        return GatedAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        rows = self.heads * self.values
        gate = {"gate.weight": (rows, width)} | ({"gate.bias": (rows,)} if self.bias else {})
        return super().weights(width) | gate
