"""Gated DeltaNet (2412.06464), as Qwen3-Next has it: the delta rule, and a gate that forgets.

    S = a S;  S = S + beta k (v - k' S)'      z = q' S / sqrt(k)  beta = sigmoid(W_b x)
    log a = -exp(A_log) softplus(W_a x + dt_bias)                 one gate a head, set by the token (Mamba 2)
    q, k = l2norm(silu(conv(W x)))  v = silu(conv(W_v x))         out = W_o [silu(W_g x) * norm(z)]

Qwen3-Next uses it in three layers of four. The gate clears the whole state at once, the delta rule corrects
it pair by pair: each does what the other cannot. Several value heads may share a key head, as in
grouped-query attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_recurrence import LinearConfig, delta
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.common.visibility import Positions
from cutaway.attention.delta import unit
from cutaway.attention.state.recurrent import Recurrent
from cutaway.bounds import Count
from cutaway.errors import UserError
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
    state="h k v + (conv - 1) (2 g k + h v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``heads`` value heads; ``key_heads`` query and key heads, a divisor of ``heads``, as many when None;
    ``conv``: how many tokens the short convolution over q, k and v sees; ``norm`` is on each head's output.
    """

    key_heads: Count | None = None
    conv: Count = 4
    norm: Norm = Norm(eps=1e-6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads % self.groups:
            raise UserError(f"attention.key_heads is {self.groups}; it must divide heads ({self.heads})")

    @property
    def groups(self) -> int:
        """How many query and key heads there are."""
        return self.heads if self.key_heads is None else self.key_heads

    @property
    def channels(self) -> int:
        """How many numbers of a token are convolved: query, key and value, in this order."""
        return 2 * self.groups * self.key_size + self.heads * self.values

    @property
    def tail(self) -> int:
        return self.channels * (self.conv - 1)

    def build(self, width: int) -> GatedDeltaNet:
        return GatedDeltaNet(self, width)


class GatedDeltaNet(nn.Module):
    """Taps ``q`` and ``k`` [b h t k] at norm 1, ``v`` [b h t v], ``beta`` and ``log_a`` [b h t 1], ``S`` [b h
    k v], ``z`` [b h t v], and ``out_input``, z normed and gated.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(width, config.groups * config.key_size, bias=False)
        self.key = nn.Linear(width, config.groups * config.key_size, bias=False)
        self.value = nn.Linear(width, config.heads * config.values, bias=False)
        self.beta = nn.Linear(width, config.heads, bias=False)
        self.forget = nn.Linear(width, config.heads, bias=False)
        self.decay = Decay(config.heads)
        self.gate = nn.Linear(width, config.heads * config.values, bias=False)
        self.conv = ShortConv(config.channels, config.conv, bias=False)
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
        heads, groups = self.config.heads, self.config.groups
        qkv = torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)
        qkv, tail = self.conv(qkv, positions.pos, positions.documents, in_order, state and state.get("tail"))
        key = groups * self.config.key_size
        q, k, v = F.silu(qkv).split((key, key, heads * self.config.values), dim=-1)
        q, k = (unit(cut(part, groups)).repeat_interleave(heads // groups, dim=1) for part in (q, k))
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(v, heads))
        beta = tap("beta", cut(self.beta(x), heads).sigmoid())
        log_a = tap("log_a", self.decay(self.forget(x))[0])
        z, S = delta(q * q.shape[-1] ** -0.5, k, v, beta, log_a, positions, state and state.get("S"))
        if state is not None:
            state.keep({"S": S, "tail": tail}, positions.pos)
        normed = self.norm(tap("z", z))
        return self.out(join(tap("out_input", cut(F.silu(self.gate(x)), heads) * normed)))


class Decay(nn.Module):
    """log a = -dt exp(A_log), dt = softplus(x + dt_bias): the longer a token's step, the more S forgets
    (Mamba).

    It starts with exp(A_log) between 1 and 16 and steps between 0.001 and 0.1, so that heads keep from a few
    to a thousand tokens.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        dt = torch.empty(heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of this is dt

    def forward(self, x: Float[Tensor, "b t h"]) -> tuple[Float[Tensor, "b h t 1"], Float[Tensor, "b h t 1"]]:
        """log a and dt."""
        dt = F.softplus(widened(x) + widened(self.dt_bias)).transpose(1, 2)[..., None]
        return -dt * widened(self.A_log).exp()[:, None, None], dt
