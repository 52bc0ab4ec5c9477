"""Gated linear attention (GLA, 2312.06635): each token decides how far each row of the state decays.

    S = diag(a) S + k v'      z = q' S / sqrt(k)      a = sigmoid(W_2 W_1 x + b)^(1 / 16)
    out = W_o [silu(W_r x) * norm(z)]                 each head normed alone

Retention forgets at a fixed rate; this decides at each token what to forget. The sixteenth root keeps the
gates near 1, or nothing would be kept for long.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_config import LinearConfig
from cutaway.attention.common.mixer import Shapes, linear, under
from cutaway.bounds import Count, Positive
from cutaway.layers.config import Norm

COST = Cost(
    prefill="n h (16 (2 k + v) + 2 k v)",
    memory="n h (3 k + 2 v)",
    decode="2 h k v",
    state="h k v",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``rank``: the size between W_1 and W_2; ``temperature``: the root; ``norm`` is each head's."""

    module = "cutaway.attention.modules.gla:GatedLinearAttention"

    rank: Count = 16
    temperature: Positive = 16.0
    norm: Norm = Norm()

    def weights(self, width: int) -> Shapes:
        shapes = super().weights(width) | linear("forget_down", self.rank, width)
        shapes |= linear("forget_up", self.heads * self.key_size, self.rank, bias=True)
        shapes |= linear("gate", self.heads * self.values, width)
        return shapes | under("norm", self.norm.weights(self.values))
