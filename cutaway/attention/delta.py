"""DeltaNet (2102.11174, in parallel 2406.06484): a token does not add to the state, it corrects it.

    S = S + beta k (v - k' S)'      z = q' S / sqrt(k)      beta = sigmoid(W_b x)
    q, k = l2norm(silu(conv(W x)))  v = silu(conv(W_v x))   out = W_o norm(z)

k' S is the value that the state now returns for this key; only its error is written. A key seen before is
overwritten instead of summed, so the state recalls pairs that linear attention blurs. k must have norm 1: the
update is one step of gradient descent on |v - S' k|^2 / 2 with a step size of at most 1, which keeps the
state bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_recurrence import Call, LinearConfig, LinearMixer, Mixed, delta
from cutaway.attention.common.softmax import cut
from cutaway.bounds import Natural
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.shapes import Float

COST = Cost(
    prefill="n h (32 (4 k + 3 v) + 3 k v)",
    memory="2 n h (k + v)",
    decode="3 h k v",
    state="h k v + max(conv - 1, 0) h (2 k + v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``conv``: tokens that the short convolution over q, k and v sees, 0 for none; ``norm``: each head's."""

    conv: Natural = 4
    norm: Norm = Norm()

    def build(self, width: int) -> DeltaNet:
        return DeltaNet(self, width)


class DeltaNet(LinearMixer):
    """``q`` and ``k`` have norm 1. Taps ``beta`` [b h t 1] besides."""

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
