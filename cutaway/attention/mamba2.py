"""Mamba 2 (2405.21060) as a mixer: a state space model that turned out to be linear attention with gates.

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
from cutaway.attention.common.linear_recurrence import LinearConfig, gated_linear
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.common.visibility import Positions
from cutaway.attention.gated_delta import Decay
from cutaway.attention.state.recurrent import Recurrent
from cutaway.bounds import Count, Positive
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation
from cutaway.shapes import Float

COST = Cost(
    prefill="n h (64 (k + v) + 2 k v)",
    memory="2 n h (k + v)",
    decode="2 h k v",
    state="h k v + (conv - 1) (h v + 2 g k)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``groups`` of heads with one B and C each, a divisor of ``heads``; ``conv``: how many tokens the short
    convolution sees; ``bias`` is on the projections; ``eps`` is the output norm's, which norms each group
    alone.
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

    @property
    def channels(self) -> int:
        """How many numbers of a token are convolved: x, B and C, in this order."""
        return self.heads * self.values + 2 * self.groups * self.key_size

    @property
    def tail(self) -> int:
        return self.channels * (self.conv - 1)

    def build(self, width: int) -> Mamba2:
        return Mamba2(self, width)


class Mamba2(nn.Module):
    """Taps ``q`` (C) and ``k`` (B) [b h t k], ``v`` (x) [b h t v], ``log_a`` and ``dt`` [b h t 1], ``S``
    [b h k v], ``z`` (y) [b h t v] with D x, and ``out_input``, y gated and normed.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.value = nn.Linear(width, config.heads * config.values, config.bias)
        self.key = nn.Linear(width, config.groups * config.key_size, config.bias)
        self.query = nn.Linear(width, config.groups * config.key_size, config.bias)
        self.step = nn.Linear(width, config.heads, config.bias)
        self.gate = nn.Linear(width, config.heads * config.values, config.bias)
        self.conv = ShortConv(config.channels, config.conv, config.conv_bias)
        self.decay = Decay(config.heads)
        self.D = nn.Parameter(torch.ones(config.heads))
        self.norm = nn.Parameter(torch.ones(config.heads * config.values))
        self.out = nn.Linear(config.heads * config.values, width, config.bias)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: Recurrent | None,
    ) -> Float[Tensor, "b t d"]:
        heads, groups = self.config.heads, self.config.groups
        vkq = torch.cat((self.value(x), self.key(x), self.query(x)), dim=-1)
        vkq, tail = self.conv(vkq, positions.pos, positions.documents, in_order, state and state.get("tail"))
        key = groups * self.config.key_size
        v, k, q = F.silu(vkq).split((heads * self.config.values, key, key), dim=-1)
        q, k = (cut(part, groups).repeat_interleave(heads // groups, dim=1) for part in (q, k))
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(v, heads))
        log_a, dt = self.decay(self.step(x))
        log_a, dt = tap("log_a", log_a), tap("dt", dt)
        read, S = gated_linear(q, k, dt * v, log_a, positions, state and state.get("S"))
        if state is not None:
            state.keep({"S": S, "tail": tail}, positions.pos)
        y = tap("z", (read + self.D[:, None, None] * v).to(x.dtype))
        normed = self._normed(join(y) * F.silu(self.gate(x)))
        return self.out(join(tap("out_input", cut(normed, heads))))

    def _normed(self, y: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        """Each group at a root mean square of 1, then each channel scaled."""
        wide = widened(y).unflatten(-1, (self.config.groups, -1))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.eps)
        return (wide.flatten(-2) * self.norm).to(y.dtype)
