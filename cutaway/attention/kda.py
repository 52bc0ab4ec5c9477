"""Kimi Delta Attention (2510.26692): the gated delta rule with a gate for each channel of a key.

    S = diag(a) S;  S = S + beta k (v - k' S)'    z = q' S / sqrt(k)    beta = sigmoid(W_b x)
    log a = -exp(A_log) softplus(W_f W_fd x + dt_bias)                  A_log is one number a head
    q, k = l2norm(silu(conv(W x)))  v = silu(conv(W_v x))   out = W_o [sigmoid(W_g W_gd x) * norm(z)]

Kimi Linear uses it in three layers of four. Gated DeltaNet's gate clears the whole state at once; here each
row of it decays at its own rate, as in gated linear attention, so that some rows are short memories and
others long ones. That order of decays is its only sense of position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_recurrence import Call, LinearConfig, LinearMixer, Mixed, delta
from cutaway.attention.common.softmax import cut
from cutaway.attention.delta import unit
from cutaway.attention.gated_delta import Decay
from cutaway.bounds import Count, Positive
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.layers.conv import Convs
from cutaway.shapes import Float

COST = Cost(
    prefill="n h (8 (8 k + 3 v) + 3 k v)",
    memory="n h (3 k + 2 v)",
    decode="3 h k v",
    state="h k v + (conv - 1) h (2 k + v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``conv``: tokens that the short convolutions see; ``norm``: each head's.

    ``rank``: the size between the two matrices of the decay, and of the gate; ``value_size`` when None. Where
    they are ``direct`` each has one matrix, and a ``bound`` is the most that log a may be below 0 (Ling 3).
    """

    conv: Count = 4
    rank: Count | None = None
    direct: bool = False
    bound: Positive | None = None
    norm: Norm = Norm()

    def build(self, width: int) -> KimiDeltaAttention:
        return KimiDeltaAttention(self, width)


class KimiDeltaAttention(LinearMixer):
    """``q`` and ``k`` have norm 1. Taps ``beta`` [b h t 1] and ``log_a`` [b h t k] besides."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        rank = config.values if config.rank is None else config.rank
        keys, values = config.heads * config.key_size, config.heads * config.values
        self.beta = nn.Linear(width, config.heads, bias=False)
        down, rank = (nn.Identity, width) if config.direct else (partial(nn.Linear, width, rank, False), rank)
        self.forget_down = down()
        self.forget = nn.Linear(rank, keys, bias=False)
        self.decay = Decay(config.heads, channels=config.key_size, bound=config.bound)
        self.gate_down = down()
        self.gate = nn.Linear(rank, values, bias=False)
        self.conv = Convs({"query": keys, "key": keys, "value": values}, config.conv)
        self.norm = config.norm.build(config.values)

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        parts, kept = self.convolved((self.query(x), self.key(x), self.value(x)), call)
        q, k, v = (cut(part, self.config.heads) for part in parts)
        q, k, v = tap("q", unit(q)), tap("k", unit(k)), tap("v", v)
        beta = tap("beta", cut(self.beta(x), self.config.heads).sigmoid())
        log_a = tap("log_a", self.decay(self.forget(self.forget_down(x)))[0])
        scaled = q * q.shape[-1] ** -0.5
        z, kept["S"] = delta(scaled, k, v, beta, log_a, call.positions, call.past.get("S"))
        return z, kept

    def output(self, x: Float[Tensor, "b t d"], z: Float[Tensor, "b h t v"]) -> Float[Tensor, "b h t v"]:
        """Each head normed alone, times sigmoid(W_g W_gd x)."""
        return cut(self.gate(self.gate_down(x)).sigmoid(), self.config.heads) * self.norm(z)
