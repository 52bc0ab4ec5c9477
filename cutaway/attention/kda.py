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

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_config import LinearConfig
from cutaway.attention.common.mixer import Shapes, linear, under
from cutaway.attention.gated_delta import decay_weights
from cutaway.bounds import Count, Positive
from cutaway.layers.config import Norm

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

    module = "cutaway.attention.modules.kda:KimiDeltaAttention"

    conv: Count = 4
    rank: Count | None = None
    direct: bool = False
    bound: Positive | None = None
    norm: Norm = Norm()

    def weights(self, width: int) -> Shapes:
        rank = self.values if self.rank is None else self.rank
        keys, values = self.heads * self.key_size, self.heads * self.values
        shapes = super().weights(width) | linear("beta", self.heads, width)
        shapes |= under("decay", decay_weights(self.heads, self.key_size))
        for name, rows in {"forget": keys, "gate": values}.items():
            shapes |= linear(name, rows, width if self.direct else rank)
            shapes |= {} if self.direct else linear(f"{name}_down", rank, width)
        parts = {"query": keys, "key": keys, "value": values}
        shapes |= {f"conv.{part}.weight": (rows, self.conv) for part, rows in parts.items()}
        return shapes | under("norm", self.norm.weights(self.values))
