"""The module of ``attention/kda.py``, which has the equation and the config."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from cutaway.attention.common.linear_recurrence import Call, LinearMixer, Mixed, delta
from cutaway.attention.common.softmax import cut
from cutaway.attention.kda import Config
from cutaway.attention.modules.delta import unit
from cutaway.attention.modules.gated_delta import Decay
from cutaway.hooks import tap
from cutaway.layers.conv import Convs
from cutaway.shapes import Float


class KimiDeltaAttention(LinearMixer):
    """``q`` and ``k`` have norm 1. Also taps ``beta`` [b h t 1] and ``log_a`` [b h t k]."""

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
