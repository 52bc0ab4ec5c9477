"""Gated attention (2505.06708, Qwen3-Next): a learned gate scales each number of the heads' outputs.

    out = W_o ( [z_1 ... z_h] * sigmoid(W_g x) )

A head with nothing to contribute closes its gate, where otherwise it would park its attention on the first
token: models with gates have no attention sink. The gate costs one matrix and nothing in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.attention import gqa
from cutaway.attention.common.cost import SOFTMAX
from cutaway.attention.common.mixer import Shapes, linear

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """Grouped-query heads behind gates: a sigmoid, or a ``softplus``, of each number, or of each head
    (``per_head``: Laguna).
    """

    module = "cutaway.attention.modules.gated:GatedAttention"

    softplus: bool = False
    per_head: bool = False

    def weights(self, width: int) -> Shapes:
        rows = self.heads * (1 if self.per_head else self.values)
        return super().weights(width) | linear("gate", rows, width, self.bias)
