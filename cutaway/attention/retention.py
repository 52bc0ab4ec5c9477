"""Retention (RetNet, 2307.08621): linear attention whose state decays, at a fixed rate a head.

    S = gamma S + k v'      z = q' S / sqrt(k)      gamma_h = 1 - 2^(-5 - h)
    out = W_o [silu(W_g x) * norm(z)]               each head normed alone

Head 0 halves its state every 22 tokens, head 1 every 44, and so on: near and far heads. q and k are rotated
by their position as in RoPE, which is the paper's complex part of gamma.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_config import LinearConfig
from cutaway.attention.common.mixer import Shapes, linear, under
from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.position import rope

COST = Cost(
    prefill="n h (64 (k + v) + 2 k v)",
    memory="2 n h (k + v)",
    decode="2 h k v",
    state="h k v",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``position`` rotates q and k; ``norm`` is on each head's output."""

    module = "cutaway.attention.modules.retention:Retention"

    position: rope.Config | None = field(default=None, metadata={"variants": "cutaway.position"})
    norm: Norm = Norm()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position is not None and self.position.grows:
            raise UserError(
                "attention: retention keeps rotated keys, so position.scaling cannot grow with the text"
            )
        if self.position is not None and self.position.size > self.key_size:
            raise UserError(
                f"attention.position.size is {self.position.size}; it must be at most key_size "
                f"({self.key_size})"
            )

    def weights(self, width: int) -> Shapes:
        gate = linear("gate", self.heads * self.values, width)
        return super().weights(width) | gate | under("norm", self.norm.weights(self.values))
