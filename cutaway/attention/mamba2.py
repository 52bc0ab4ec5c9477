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


PLAIN = (1.0,) * 5


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``groups`` of heads with one B and C each, a divisor of ``heads``; ``conv``: tokens that it sees.

    ``bias`` is on the projections, and ``out_bias`` on the last if it is not as the others; ``eps`` is the
    output norm's, which norms each group alone: after the gate, before it ("first"), or not at all, as
    ``normed`` says. ``least`` bounds dt from below (Nemotron-H), and five ``multipliers`` are of z, x, B, C
    and dt as they are projected (Falcon-H1).
    """

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

    def build(self, width: int) -> Mamba2:
        return Mamba2(self, width)


class Mamba2(LinearMixer):
    """``q`` is C, ``k`` B, ``v`` x, and ``z`` y with D x. Taps ``log_a`` and ``dt`` [b h t 1] besides."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width, config.bias)
        self.step = nn.Linear(width, config.heads, config.bias)
        self.gate = nn.Linear(width, config.heads * config.values, config.bias)
        self.conv = ShortConv(config.channels, config.conv, config.conv_bias)
        self.decay = Decay(config.heads, config.least)
        self.D = nn.Parameter(torch.ones(config.heads))
        self.norm = nn.Parameter(torch.ones(config.heads * config.values)) if config.normed else None
        if config.out_bias not in (None, config.bias):
            self.out = nn.Linear(config.heads * config.values, width, config.out_bias)

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        heads, groups = self.config.heads, self.config.groups
        matrices = self.value, self.key, self.query, self.step
        by = self.config.multipliers
        *parts, step = (_times(matrix(x), m) for matrix, m in zip(matrices, by[1:], strict=True))
        (v, k, q), kept = self.convolved(parts, call)
        q, k = (cut(part, groups).repeat_interleave(heads // groups, dim=1) for part in (q, k))
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(v, heads))
        log_a, dt = self.decay(step)
        log_a, dt = tap("log_a", log_a), tap("dt", dt)
        read, kept["S"] = gated_linear(q, k, dt * v, log_a, call.positions, call.past.get("S"))
        return (read + self.D[:, None, None] * v).to(x.dtype), kept

    def output(self, x: Float[Tensor, "b t d"], z: Float[Tensor, "b h t v"]) -> Float[Tensor, "b h t v"]:
        """y gated, each group at a root mean square of 1, then each channel scaled."""
        gate, y = F.silu(_times(self.gate(x), self.config.multipliers[0])), join(z)
        if self.config.normed == "first":
            return cut(self._normed(y) * gate, self.config.heads)
        y = y * gate
        return cut(y if self.norm is None else self._normed(y), self.config.heads)

    def _normed(self, y: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        wide = widened(y).unflatten(-1, (self.config.groups, -1))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.eps)
        return (wide.flatten(-2) * self.norm).to(y.dtype)


def _times(x: Float[Tensor, "..."], by: float) -> Float[Tensor, "..."]:
    return x if by == 1.0 else x * by
