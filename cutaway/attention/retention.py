"""Retention (RetNet, 2307.08621): linear attention whose state decays, at a fixed rate a head.

    S = gamma S + k v'      z = q' S / sqrt(k)      gamma_h = 1 - 2^(-5 - h)
    out = W_o [silu(W_g x) * norm(z)]               each head normed alone

Head 0 halves its state every 22 tokens, head 1 every 44, and so on: near and far heads. q and k are rotated
by their position as in RoPE, which is the paper's complex part of gamma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_recurrence import Call, LinearConfig, LinearMixer, Mixed, gated_linear
from cutaway.attention.common.softmax import cut
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.layers.norm import widened
from cutaway.position import rope
from cutaway.position.rope import rotate
from cutaway.shapes import Float

COST = Cost(
    prefill="n h (64 (k + v) + 2 k v)",
    memory="2 n h (k + v)",
    decode="2 h k v",
    state="h k v",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``position`` rotates q and k; ``norm`` is on each head's output."""

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

    def build(self, width: int) -> Retention:
        return Retention(self, width)


class Retention(LinearMixer):
    """``q`` and ``k`` are rotated."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.log_gamma = [math.log1p(-(2.0 ** (-5 - h))) for h in range(config.heads)]
        self.gate = nn.Linear(width, config.heads * config.values, bias=False)
        self.norm = config.norm.build(config.values)

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        heads = self.config.heads
        q, k = cut(self.query(x), heads), cut(self.key(x), heads)
        if call.rotation is not None:
            q, k = rotate(q, call.rotation), rotate(k, call.rotation)
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(self.value(x), heads))
        log_a = widened(v).new_tensor(self.log_gamma)[None, :, None, None].expand(*v.shape[:3], 1)
        z, S = gated_linear(q * q.shape[-1] ** -0.5, k, v, log_a, call.positions, call.past.get("S"))
        return z, {"S": S}
