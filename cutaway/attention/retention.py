"""Retention (RetNet, 2307.08621): linear attention whose memory fades, at a fixed pace a head.

    S = gamma S + k v'      o = q' S / sqrt(k)      gamma_h = 1 - 2^(-5 - h)
    out = W_o [silu(W_g x) * norm(o)]               each head normed alone

Head 0 halves what it remembers every 22 tokens, head 1 every 44, and so on: near and far heads. q and k are
turned by their position as in RoPE, which is the paper's complex part of gamma.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cutaway.attention.parts.cost import Cost
from cutaway.attention.parts.recurrent import Recurring
from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.position import rope

if TYPE_CHECKING:
    from torch import nn


COST = Cost(
    prefill="n h (64 (k + v) + 2 k v)",
    memory="2 n h (k + v)",
    decode="2 h k v",
    state="h k v",
)


@dataclass(frozen=True, kw_only=True)
class Config(Recurring):
    """``position`` turns q and k; ``norm`` is on each head's output."""

    position: rope.Config | None = field(default=None, metadata={"variants": "cutaway.position"})
    norm: Norm = Norm()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position is not None and self.position.grows:
            raise UserError(
                "attention: retention remembers keys turned, so their scaling cannot grow with the text"
            )

    def build(self, width: int) -> nn.Module:
        from cutaway.attention.parts.retention import Retention

        return Retention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        key, value = self.heads * self.key_size, self.heads * self.values
        shapes = {
            "query.weight": (key, width),
            "key.weight": (key, width),
            "value.weight": (value, width),
            "gate.weight": (value, width),
            "out.weight": (width, value),
        }
        return shapes | {f"norm.{name}": shape for name, shape in self.norm.weights(self.values).items()}
