"""Mamba 2 (2405.21060) as a mixer: a state space model that proved to be linear attention with gates.

    S = a S + dt B x'      y = C' S + D x      log a = -dt exp(A_log)      dt = softplus(W_dt u + dt_bias)
    x, B, C = silu(conv(W u))                  out = W_o norm(y * silu(W_z u))

u is the block's input. C is the query, B the key and x the value: k = N, the paper's state size, and v = P,
its head size. One step dt acts both ways: a token with a long step writes much and makes the state forget
much. D lets a token read itself past the state. Heads of a group share B and C.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_recurrence import Call, LinearConfig, LinearMixer, Mixed, gated_linear
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.gated_delta import Decay
from cutaway.bounds import Count, Positive
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.shapes import Float

COST = Cost(
    prefill="n h (64 (k + v) + 2 k v)",
    memory="2 n h (k + v)",
    decode="2 h k v",
    state="h k v + (conv - 1) (h v + 2 g k)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``groups`` of heads with one B and C each, a divisor of ``heads``; ``conv``: tokens that it sees.

    ``bias`` is on the projections; ``eps`` is the output norm's, which norms each group alone.
    """

    groups: Count = 1
    conv: Count = 4
    bias: bool = False
    conv_bias: bool = True
    eps: Positive = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads % self.groups:
            raise UserError(f"attention.groups is {self.groups}; it must divide heads ({self.heads})")

    def build(self, width: int) -> Mamba2:
        return Mamba2(self, width)


class Mamba2(LinearMixer):
    """``q`` is C, ``k`` B, ``v`` x, and ``z`` y with D x. Taps ``log_a`` and ``dt`` [b h t 1] besides."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width, config.bias)
        self.step = nn.Linear(width, config.heads, config.bias)
        self.gate = nn.Linear(width, config.heads * config.values, config.bias)
        self.conv = ShortConv(config.channels, config.conv, config.conv_bias)
        self.decay = Decay(config.heads)
        self.D = nn.Parameter(torch.ones(config.heads))
        self.norm = nn.Parameter(torch.ones(config.heads * config.values))

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        heads, groups = self.config.heads, self.config.groups
        (v, k, q), kept = self.convolved((self.value(x), self.key(x), self.query(x)), call)
        q, k = (cut(part, groups).repeat_interleave(heads // groups, dim=1) for part in (q, k))
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(v, heads))
        log_a, dt = self.decay(self.step(x))
        log_a, dt = tap("log_a", log_a), tap("dt", dt)
        read, kept["S"] = gated_linear(q, k, dt * v, log_a, call.positions, call.past.get("S"))
        return (read + self.D[:, None, None] * v).to(x.dtype), kept

    def output(self, x: Float[Tensor, "b t d"], z: Float[Tensor, "b h t v"]) -> Float[Tensor, "b h t v"]:
        """y gated, each group at a root mean square of 1, then each channel scaled."""
        y = join(z) * F.silu(self.gate(x))
        wide = widened(y).unflatten(-1, (self.config.groups, -1))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.eps)
        return cut((wide.flatten(-2) * self.norm).to(y.dtype), self.config.heads)
