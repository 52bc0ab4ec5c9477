"""Mamba 2 (2405.21060) as a mixer: a state space model that proved to be linear attention with gates.

    S = a S + dt B x'      y = C' S + D x      log a = -dt exp(A_log)      dt = softplus(W_dt u + dt_bias)
    x, B, C = silu(conv(W u))                  out = W_o norm(y * silu(W_z u))

u is the block's input. C is the query, B the key and x the value: k = N, the paper's state size, and v = P,
its head size. One step dt acts both ways: a token with a long step writes much and makes the state forget
much. D lets a token read itself past the state. Heads of a group share B and C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_config import LinearConfig
from cutaway.attention.common.mixer import Shapes, linear, under
from cutaway.attention.gated_delta import decay_weights
from cutaway.bounds import Count, Positive
from cutaway.errors import UserError

COST = Cost(
    prefill="n h (64 (k + v) + 2 k v)",
    memory="2 n h (k + v)",
    decode="2 h k v",
    state="h k v + (conv - 1) (h v + 2 g k)",
)
PLAIN = (1.0,) * 5


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``groups`` of heads with one B and C each, a divisor of ``heads``; ``conv``: tokens that it sees.

    ``bias`` is on the projections, and ``out_bias`` on the last if it is not as the others; ``eps`` is the
    output norm's, which norms each group alone: after the gate, before it ("first"), or not at all, as
    ``normed`` says. ``least`` bounds dt from below (Nemotron-H), and five ``multipliers`` are of z, x, B, C
    and dt as they are projected (Falcon-H1).
    """

    module = "cutaway.attention.modules.mamba2:Mamba2"

    groups: Count = 1
    conv: Count = 4
    bias: bool = False
    conv_bias: bool = True
    eps: Positive = 1e-5
    out_bias: bool | None = None
    normed: Literal["gated", "first"] | None = "gated"
    least: Positive | None = None
    multipliers: tuple[Positive, ...] = PLAIN

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads % self.groups:
            raise UserError(f"attention.groups is {self.groups}; it must divide heads ({self.heads})")
        if len(self.multipliers) != 5:
            raise UserError("attention.multipliers should be five numbers: of z, x, B, C and dt")

    @property
    def biased(self) -> tuple[bool, bool]:
        return self.bias, self.bias if self.out_bias is None else self.out_bias

    def weights(self, width: int) -> Shapes:
        values = self.heads * self.values
        shapes = super().weights(width) | linear("step", self.heads, width, self.bias)
        shapes |= linear("gate", values, width, self.bias) | under("decay", decay_weights(self.heads))
        shapes |= linear("conv", self.channels, self.conv, self.conv_bias) | {"D": (self.heads,)}
        return shapes | ({"norm": (values,)} if self.normed else {})
