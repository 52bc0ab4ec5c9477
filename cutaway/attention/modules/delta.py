"""The module of ``attention/delta.py``, which has the equation and the config."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.common.linear_recurrence import Call, LinearMixer, Mixed, delta
from cutaway.attention.common.softmax import cut
from cutaway.attention.delta import Config
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.shapes import Float


class DeltaNet(LinearMixer):
    """``q`` and ``k`` have norm 1. Also taps ``beta`` [b h t 1]."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.beta = nn.Linear(width, config.heads, bias=False)
        self.conv = ShortConv(config.channels, config.conv, bias=False) if config.conv else None
        self.norm = config.norm.build(config.values)

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        heads = self.config.heads
        parts, kept = self.convolved((self.query(x), self.key(x), self.value(x)), call)
        q, k, v = (cut(part, heads) for part in parts)
        q, k, v = tap("q", unit(q)), tap("k", unit(k)), tap("v", v)
        beta = tap("beta", cut(self.beta(x), heads).sigmoid())
        scaled, open_ = q * q.shape[-1] ** -0.5, torch.zeros_like(beta)
        z, kept["S"] = delta(scaled, k, v, beta, open_, call.positions, call.past.get("S"))
        return z, kept


def unit(x: Float[Tensor, "... k"]) -> Float[Tensor, "... k"]:
    """x at norm 1; a vector near zero stays near zero."""
    wide = widened(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)
