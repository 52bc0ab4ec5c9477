"""The module of ``attention/gla.py``, which has the equation and the config."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common.linear_recurrence import Call, LinearMixer, Mixed, gated_linear
from cutaway.attention.common.softmax import cut
from cutaway.attention.gla import Config
from cutaway.hooks import tap
from cutaway.layers.norm import widened
from cutaway.shapes import Float


class GatedLinearAttention(LinearMixer):
    """Also taps ``log_a`` [b h t k], the logarithm of the gates."""

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
