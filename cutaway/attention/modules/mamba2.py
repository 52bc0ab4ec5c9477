"""The module of ``attention/mamba2.py``, which has the equation and the config."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common.linear_recurrence import Call, LinearMixer, Mixed, gated_linear
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.mamba2 import Config
from cutaway.attention.modules.gated_delta import Decay
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.shapes import Float


class Mamba2(LinearMixer):
    """``q`` is C, ``k`` B, ``v`` x, and ``z`` y with D x. Also taps ``log_a`` and ``dt`` [b h t 1]."""

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
