"""Linear attention (2006.16236): exp(q . k) becomes phi(q) . phi(k), and the past one matrix.

    S = S + phi(k) v'    z = z + phi(k)        o = S' phi(q) / (z . phi(q))

Reading token n costs the same for every n. Nothing is ever forgotten, so a long text's tokens blur into each
other: retention and gla answer that with gates, delta by overwriting.

    elu     phi(x) = elu(x) + 1, the paper's: positive everywhere
    relu    phi(x) = max(x, 0): sparser; a token whose features are all zero reads zero
    taylor  phi(q) . phi(k) = 1 + s + s^2 / 2, s = q . k / sqrt(k): exp to second order (2402.18668)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_recurrence import Call, LinearConfig, LinearMixer, Mixed, gated_linear
from cutaway.attention.common.softmax import cut
from cutaway.hooks import tap
from cutaway.shapes import Float

COST = Cost(
    prefill="n h (64 (f + v + 1) + 2 f (v + 1))",
    memory="2 n h (f + v)",
    decode="2 h f v",
    state="h f (v + 1)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``feature``: the map phi."""

    feature: Literal["elu", "relu", "taylor"] = "elu"

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """A row for each feature; z is one more column, the sum of values that are all 1."""
        rows = 1 + self.key_size + self.key_size**2 if self.feature == "taylor" else self.key_size
        return self.heads, rows, self.values + 1

    def build(self, width: int) -> LinearAttention:
        return LinearAttention(self, width)


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
