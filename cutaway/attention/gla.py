"""Gated linear attention (GLA, 2312.06635): each token decides how far each row of the state decays.

    S = diag(a) S + k v'      z = q' S / sqrt(k)      a = sigmoid(W_2 W_1 x + b)^(1 / 16)
    out = W_o [silu(W_r x) * norm(z)]                 each head normed alone

Retention forgets at a fixed rate; this decides at each token what to forget. The sixteenth root keeps the
gates near 1, or nothing would be kept for long.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_recurrence import Call, LinearConfig, LinearMixer, Mixed, gated_linear
from cutaway.attention.common.softmax import cut
from cutaway.bounds import Count, Positive
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.layers.norm import widened
from cutaway.shapes import Float

COST = Cost(
    prefill="n h (16 (2 k + v) + 2 k v)",
    memory="n h (3 k + 2 v)",
    decode="2 h k v",
    state="h k v",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``rank``: the size between W_1 and W_2; ``temperature``: the root; ``norm`` is each head's."""

    rank: Count = 16
    temperature: Positive = 16.0
    norm: Norm = Norm()

    def build(self, width: int) -> GatedLinearAttention:
        return GatedLinearAttention(self, width)


class GatedLinearAttention(LinearMixer):
    """Taps ``log_a`` [b h t k], the logarithm of the gates, besides."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.forget_down = nn.Linear(width, config.rank, bias=False)
        self.forget_up = nn.Linear(config.rank, config.heads * config.key_size)
        self.gate = nn.Linear(width, config.heads * config.values, bias=False)
        self.norm = config.norm.build(config.values)

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        heads = self.config.heads
        q, k = tap("q", cut(self.query(x), heads)), tap("k", cut(self.key(x), heads))
        v = tap("v", cut(self.value(x), heads))
        forget = widened(cut(self.forget_up(self.forget_down(x)), heads))
        log_a = tap("log_a", F.logsigmoid(forget) / self.config.temperature)
        z, S = gated_linear(q * q.shape[-1] ** -0.5, k, v, log_a, call.positions, call.past.get("S"))
        return z, {"S": S}
