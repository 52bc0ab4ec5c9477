"""The module of ``attention/linear.py``, which has the equation and the config."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cutaway.attention.common.linear_recurrence import Call, LinearMixer, Mixed, gated_linear
from cutaway.attention.common.softmax import cut
from cutaway.attention.linear import Config
from cutaway.hooks import tap
from cutaway.shapes import Float


class LinearAttention(LinearMixer):
    """``q`` and ``k`` are features [b h t f], ``S`` is [b h f v+1], ``z`` the paper's o."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.phi = PHI[config.feature]

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        heads = self.config.heads
        q = tap("q", self.phi(cut(self.query(x), heads)))
        k = tap("k", self.phi(cut(self.key(x), heads)))
        v = tap("v", cut(self.value(x), heads))
        ones = torch.ones_like(v[..., :1])
        values, open_ = torch.cat((v, ones), -1), torch.zeros_like(ones)
        read, S = gated_linear(q, k, values, open_, call.positions, call.past.get("S"))
        weight = torch.where(read[..., -1:] > 0, read[..., -1:], 1.0)  # a token that sees nothing read zero
        return read[..., :-1] / weight, {"S": S}


def _taylor(x: Float[Tensor, "b h t k"]) -> Float[Tensor, "b h t f"]:
    x = x * x.shape[-1] ** -0.25
    squares = (x[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat((torch.ones_like(x[..., :1]), x, squares * 0.5**0.5), dim=-1)


PHI = {"elu": lambda x: F.elu(x) + 1, "relu": F.relu, "taylor": _taylor}
