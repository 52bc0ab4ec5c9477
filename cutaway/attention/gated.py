"""Gated attention (2505.06708, Qwen3-Next): a learned gate scales each number of the heads' outputs.

    out = W_o ( [z_1 ... z_h] * sigmoid(W_g x) )

A head with nothing to contribute closes its gate, where otherwise it would park its attention on the first
token: models with gates have no attention sink. The gate costs one matrix and nothing in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from cutaway.attention import gqa
from cutaway.attention.common.cost import SOFTMAX
from cutaway.attention.common.mixer import weight_shapes
from cutaway.attention.common.softmax import SoftmaxAttention, cut
from cutaway.hooks import tap
from cutaway.shapes import Float

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """Grouped-query heads behind gates: a sigmoid, or a ``softplus``, of each number, or of each head
    (``per_head``: Laguna).
    """

    softplus: bool = False
    per_head: bool = False

    def build(self, width: int) -> GatedAttention:
        return GatedAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        return weight_shapes(self, width)


class GatedAttention(SoftmaxAttention):
    """Taps ``gate`` [b t h*v], or [b t h], and ``out_input`` [b h t v], z times the gate, besides."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.softplus, size = config.softplus, 1 if config.per_head else config.values
        self.gate = nn.Linear(width, config.heads * size, config.bias)

    def output(self, x: Float[Tensor, "b t d"], z: Float[Tensor, "b h t v"]) -> Float[Tensor, "b h t v"]:
        """z times the gate."""
        gate = self.gate(x)
        gate = tap("gate", functional.softplus(gate) if self.softplus else gate.sigmoid())
        return tap("out_input", cut(gate, self.config.heads) * z)
