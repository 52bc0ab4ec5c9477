"""The module of ``attention/retention.py``, which has the equation and the config."""

from __future__ import annotations

import math

from torch import Tensor, nn

from cutaway.attention.common.linear_recurrence import Call, LinearMixer, Mixed, gated_linear
from cutaway.attention.common.softmax import cut
from cutaway.attention.retention import Config
from cutaway.hooks import tap
from cutaway.layers.norm import widened
from cutaway.position.rope import rotate
from cutaway.shapes import Float


class Retention(LinearMixer):
    """``q`` and ``k`` are rotated."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.log_gamma = [math.log1p(-(2.0 ** (-5 - h))) for h in range(config.heads)]
        self.gate = nn.Linear(width, config.heads * config.values, bias=False)
        self.norm = config.norm.build(config.values)

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        heads = self.config.heads
        q, k = cut(self.query(x), heads), cut(self.key(x), heads)
        if call.rotation is not None:
            q, k = rotate(q, call.rotation), rotate(k, call.rotation)
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(self.value(x), heads))
        log_a = widened(v).new_tensor(self.log_gamma)[None, :, None, None].expand(*v.shape[:3], 1)
        z, S = gated_linear(q * q.shape[-1] ** -0.5, k, v, log_a, call.positions, call.past.get("S"))
        return z, {"S": S}
