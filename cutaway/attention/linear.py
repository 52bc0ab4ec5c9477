"""Linear attention (2006.16236): the softmax's exp(q . k) becomes phi(q) . phi(k), so that the past is a
matrix.

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
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_recurrence import LinearConfig, gated_linear
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.common.visibility import Positions
from cutaway.attention.state.recurrent import Recurrent
from cutaway.hooks import tap
from cutaway.position.rope import Rotation
from cutaway.shapes import Float

COST = Cost(
    prefill="n h (64 (f + v) + 2 f v)",
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


class LinearAttention(nn.Module):
    """Taps ``q`` and ``k`` [b h t f] as features, ``v`` [b h t v], ``S`` [b h f v+1], and ``z`` [b h t v],
    what each head read (the paper's o), as ``out_input`` too.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.phi = PHI[config.feature]
        self.query = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.key = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.value = nn.Linear(width, config.heads * config.values, bias=False)
        self.out = nn.Linear(config.heads * config.values, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: Recurrent | None,
    ) -> Float[Tensor, "b t d"]:
        heads = self.config.heads
        q = tap("q", self.phi(cut(self.query(x), heads)))
        k = tap("k", self.phi(cut(self.key(x), heads)))
        v = tap("v", cut(self.value(x), heads))
        ones = torch.ones_like(v[..., :1])
        values, open_ = torch.cat((v, ones), -1), torch.zeros_like(ones)
        read, S = gated_linear(q, k, values, open_, positions, state and state.get("S"))
        if state is not None:
            state.keep({"S": S}, positions.pos)
        weight = torch.where(read[..., -1:] > 0, read[..., -1:], 1.0)  # a token that sees nothing read zero
        return self.out(join(tap("out_input", tap("z", read[..., :-1] / weight))))


def _taylor(x: Float[Tensor, "b h t k"]) -> Float[Tensor, "b h t f"]:
    x = x * x.shape[-1] ** -0.25
    squares = (x[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat((torch.ones_like(x[..., :1]), x, squares * 0.5**0.5), dim=-1)


PHI = {"elu": lambda x: F.elu(x) + 1, "relu": F.relu, "taylor": _taylor}
