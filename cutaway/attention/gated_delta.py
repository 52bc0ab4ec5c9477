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
from cutaway.attention.common.linear_recurrence import Call, LinearConfig, LinearMixer, Mixed, delta
from cutaway.attention.common.softmax import cut
from cutaway.attention.delta import unit
from cutaway.bounds import Count
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.layers.conv import Convs, ShortConv
from cutaway.layers.norm import widened
from cutaway.shapes import Float

COST = Cost(
    prefill="n h (32 (4 k + 3 v) + 3 k v)",
    memory="2 n h (k + v)",
    decode="3 h k v",
    state="h k v + (conv - 1) (2 g k + h v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``key_heads`` query and key heads, a divisor of the ``heads`` value heads, as many when None.

    ``conv``: tokens that the short convolution over q, k and v sees, or one of each where they are ``apart``;
    ``norm``: each head's. A ``negative`` eigenvalue of the state's step needs a beta of up to 2 (2411.12537,
    OLMo Hybrid).
    """

    key_heads: Count | None = None
    conv: Count = 4
    norm: Norm = Norm(eps=1e-6)
    apart: bool = False
    negative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads % self.groups:
            raise UserError(f"attention.key_heads is {self.groups}; it must divide heads ({self.heads})")

    @property
    def groups(self) -> int:
        """How many query and key heads there are."""
        return self.heads if self.key_heads is None else self.key_heads

    def build(self, width: int) -> GatedDeltaNet:
        return GatedDeltaNet(self, width)


class GatedDeltaNet(LinearMixer):
    """``q`` and ``k`` have norm 1. Taps ``beta`` and ``log_a`` [b h t 1] besides."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.beta = nn.Linear(width, config.heads, bias=False)
        self.forget = nn.Linear(width, config.heads, bias=False)
        self.decay = Decay(config.heads)
        self.gate = nn.Linear(width, config.heads * config.values, bias=False)
        sizes = {"query": self.query, "key": self.key, "value": self.value}
        parts = {name: matrix.out_features for name, matrix in sizes.items()}
        whole = ShortConv(config.channels, config.conv, bias=False)
        self.conv = Convs(parts, config.conv) if config.apart else whole
        self.norm = config.norm.build(config.values)

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        heads, groups = self.config.heads, self.config.groups
        (q, k, v), kept = self.convolved((self.query(x), self.key(x), self.value(x)), call)
        q, k = (unit(cut(part, groups)).repeat_interleave(heads // groups, dim=1) for part in (q, k))
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(v, heads))
        beta = cut(self.beta(x), heads).sigmoid()
        beta = tap("beta", 2 * beta if self.config.negative else beta)
        log_a = tap("log_a", self.decay(self.forget(x))[0])
        scaled = q * q.shape[-1] ** -0.5
        z, kept["S"] = delta(scaled, k, v, beta, log_a, call.positions, call.past.get("S"))
        return z, kept


class Decay(nn.Module):
    """log a = -dt exp(A_log), dt = softplus(x + dt_bias): a longer step forgets more of S (Mamba).

    It starts with exp(A_log) between 1 and 16 and steps between 0.001 and 0.1, so that heads keep from a few
    to a thousand tokens. ``least``: a bound of dt from below; ``channels``: how many gates each head has.
    With a ``bound`` log a = -bound sigmoid(exp(A_log) (x + dt_bias)), which keeps a part of S whatever comes
    (Ling 3).
    """

    def __init__(
        self, heads: int, least: float | None = None, channels: int = 1, bound: float | None = None
    ) -> None:
        super().__init__()
        self.least, self.bound = least, bound
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        dt = torch.empty(heads * channels).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(dt.expm1().log())  # softplus of this is dt

    def forward(self, x: Float[Tensor, "b t m"]) -> tuple[Float[Tensor, "b h t n"], Float[Tensor, "b h t n"]]:
        """log a and dt of each head's n gates."""
        given = widened(x) + widened(self.dt_bias)
        if self.bound is not None:
            sharp = widened(self.A_log).exp()[:, None, None] * cut(given, len(self.A_log))
            return -self.bound * sharp.sigmoid(), sharp
        dt = cut(F.softplus(given), len(self.A_log))
        dt = dt if self.least is None else dt.clamp(min=self.least)
        return -dt * widened(self.A_log).exp()[:, None, None], dt
