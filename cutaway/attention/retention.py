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
from torch.nn import functional as F

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_recurrence import LinearConfig, gated_linear
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.common.visibility import Positions
from cutaway.attention.state.recurrent import Recurrent
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.layers.norm import widened
from cutaway.position import rope
from cutaway.position.rope import Rotation, rotate
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


class Retention(nn.Module):
    """Taps ``q`` and ``k`` [b h t k] rotated, ``v`` [b h t v], ``S`` [b h k v], ``z`` [b h t v], and
    ``out_input``, z normed and gated.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.log_gamma = [math.log1p(-(2.0 ** (-5 - h))) for h in range(config.heads)]
        self.query = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.key = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.value = nn.Linear(width, config.heads * config.values, bias=False)
        self.gate = nn.Linear(width, config.heads * config.values, bias=False)
        self.norm = config.norm.build(config.values)
        self.out = nn.Linear(config.heads * config.values, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: Recurrent | None,
    ) -> Float[Tensor, "b t d"]:
        heads = self.config.heads
        q, k = cut(self.query(x), heads), cut(self.key(x), heads)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(self.value(x), heads))
        log_a = widened(v).new_tensor(self.log_gamma)[None, :, None, None].expand(*v.shape[:3], 1)
        z, S = gated_linear(q * q.shape[-1] ** -0.5, k, v, log_a, positions, state and state.get("S"))
        if state is not None:
            state.keep({"S": S}, positions.pos)
        normed = self.norm(tap("z", z))
        return self.out(join(tap("out_input", cut(F.silu(self.gate(x)), heads) * normed)))
