"""Attention with a norm before its output matrix (BitNet b1.58, 2504.12285).

    out = W_o norm([z_1 ... z_h])

Where activations are rounded to eight bits, each matrix reads normed ones. The norm is over all heads as one
vector; its factor of each number is a gate like that of gated attention, made of the numbers themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.attention import gated
from cutaway.attention.common.cost import SOFTMAX
from cutaway.attention.common.mixer import Shapes
from cutaway.bounds import Positive

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(gated.Config):
    """Grouped-query heads whose outputs are normed together; ``eps`` is the norm's."""

    module = "cutaway.attention.modules.sub_norm:SubNormAttention"

    eps: Positive = 1e-5

    def weights(self, width: int) -> Shapes:
        gated_heads = super().weights(width)
        shapes = {name: shape for name, shape in gated_heads.items() if not name.startswith("gate.")}
        return shapes | {"out_norm": (self.heads * self.values,)}
