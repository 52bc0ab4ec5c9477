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

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_config import LinearConfig

COST = Cost(
    prefill="n h (64 (f + v + 1) + 2 f (v + 1))",
    memory="2 n h (f + v)",
    decode="2 h f v",
    state="h f (v + 1)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``feature``: the map phi."""

    module = "cutaway.attention.modules.linear:LinearAttention"

    feature: Literal["elu", "relu", "taylor"] = "elu"

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """A row for each feature; z is one more column, the sum of values that are all 1."""
        rows = 1 + self.key_size + self.key_size**2 if self.feature == "taylor" else self.key_size
        return self.heads, rows, self.values + 1
