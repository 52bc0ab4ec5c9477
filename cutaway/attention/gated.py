"""Gated attention (2505.06708, Qwen3-Next): a learned gate scales each number that the heads read.

    out = W_o ( [z_1 ... z_h] * sigmoid(W_g x) )

A head with nothing to contribute closes its gate, where otherwise it would park its attention on the first
token: models with gates have no attention sink. The gate costs one matrix and nothing in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cutaway.attention import gqa
from cutaway.attention.common.cost import SOFTMAX
from cutaway.attention.common.mixer import LayerState, weight_shapes
from cutaway.attention.common.softmax import SoftmaxAttention, cut, join
from cutaway.attention.common.visibility import Positions
from cutaway.hooks import tap
from cutaway.position.rope import Rotation
from cutaway.shapes import Float

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """Grouped-query heads behind gates."""

    def build(self, width: int) -> GatedAttention:
        return GatedAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        return weight_shapes(self, width)


class GatedAttention(SoftmaxAttention):
    """Taps ``gate`` [b t h*v], from 0 to 1, and ``out_input`` [b h t v], z times the gate, besides what every
    softmax attention taps.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.gate = nn.Linear(width, config.heads * config.values, config.bias)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: LayerState | None,
    ) -> Float[Tensor, "b t d"]:
        gate = tap("gate", self.gate(x).sigmoid())
        gated = gate * join(self.z(x, positions, rotation, in_order, state))
        return self.out(join(tap("out_input", cut(gated, self.config.heads))))
