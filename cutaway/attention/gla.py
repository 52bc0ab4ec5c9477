"""Gated linear attention (GLA, 2312.06635): each row of the memory fades as the token says.

    S = diag(a) S + k v'      o = q' S / sqrt(k)      a = sigmoid(W_2 W_1 x + b)^(1 / 16)
    out = W_o [silu(W_r x) * norm(o)]                 each head normed alone

Where retention forgets at a fixed pace, this decides at each token what to let go of. The sixteenth root
keeps the gates near 1, or nothing would be remembered for long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.attention.parts.cost import Cost
from cutaway.attention.parts.recurrent import Recurring
from cutaway.layers.config import Norm

if TYPE_CHECKING:
    from torch import nn


COST = Cost(
    prefill="n h (16 (2 k + v) + 2 k v)",
    memory="n h (3 k + 2 v)",
    decode="2 h k v",
    state="h k v",
)


@dataclass(frozen=True, kw_only=True)
class Config(Recurring):
    """``rank``: the size between W_1 and W_2; ``temperature``: the root; ``norm`` is each head's."""

    rank: int = 16
    temperature: float = 16.0
    norm: Norm = Norm()

    def build(self, width: int) -> nn.Module:
        from cutaway.attention.parts.gla import GatedLinearAttention

        return GatedLinearAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        key, value = self.heads * self.key_size, self.heads * self.values
        shapes = {
            "query.weight": (key, width),
            "key.weight": (key, width),
            "value.weight": (value, width),
            "forget_down.weight": (self.rank, width),
            "forget_up.weight": (key, self.rank),
            "forget_up.bias": (key,),
            "gate.weight": (value, width),
            "out.weight": (width, value),
        }
        return shapes | {f"norm.{name}": shape for name, shape in self.norm.weights(self.values).items()}
