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
from torch.nn import functional as F

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_recurrence import LinearConfig, delta
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.common.visibility import Positions
from cutaway.attention.state.recurrent import Recurrent
from cutaway.bounds import Natural
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation
from cutaway.shapes import Float

COST = Cost(
    prefill="n h (64 (2 k + 2 v) + 3 k v)",
    memory="2 n h (k + v)",
    decode="3 h k v",
    state="h k v + max(conv - 1, 0) h (2 k + v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``conv``: how many tokens the short convolution over q, k and v sees, no convolution when 0; ``norm``
    is on each head's output.
    """

    conv: Natural = 4
    norm: Norm = Norm()

    @property
    def channels(self) -> int:
        """How many numbers of a token are convolved: query, key and value, in this order."""
        return self.heads * (2 * self.key_size + self.values)

    @property
    def tail(self) -> int:
        return self.channels * max(self.conv - 1, 0)

    def build(self, width: int) -> DeltaNet:
        return DeltaNet(self, width)


class DeltaNet(nn.Module):
    """Taps ``q`` and ``k`` [b h t k] at norm 1, ``v`` [b h t v], ``beta`` [b h t 1], ``S`` [b h k v], ``z``
    [b h t v], and ``out_input``, z normed.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.key = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.value = nn.Linear(width, config.heads * config.values, bias=False)
        self.beta = nn.Linear(width, config.heads, bias=False)
        self.conv = ShortConv(config.channels, config.conv, bias=False) if config.conv else None
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
        heads, key = self.config.heads, self.config.heads * self.config.key_size
        qkv, kept = torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1), {}
        if self.conv is not None:
            qkv, kept["tail"] = self.conv(
                qkv, positions.pos, positions.documents, in_order, state and state.get("tail")
            )
        sizes = (key, key, qkv.shape[-1] - 2 * key)
        q, k, v = (cut(part, heads) for part in F.silu(qkv).split(sizes, dim=-1))
        q, k, v = tap("q", unit(q)), tap("k", unit(k)), tap("v", v)
        beta = tap("beta", cut(self.beta(x), heads).sigmoid())
        scaled, open_ = q * q.shape[-1] ** -0.5, torch.zeros_like(beta)
        z, kept["S"] = delta(scaled, k, v, beta, open_, positions, state and state.get("S"))
        if state is not None:
            state.keep(kept, positions.pos)
        return self.out(join(tap("out_input", self.norm(tap("z", z)))))


def unit(x: Float[Tensor, "... k"]) -> Float[Tensor, "... k"]:
    """x at norm 1; a vector near zero stays near zero."""
    wide = widened(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)
