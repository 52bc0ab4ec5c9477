"""DeltaNet (2102.11174, in parallel 2406.06484): a token does not add to the memory, it corrects it.

    S = S + beta k (v - k' S)'      o = q' S / sqrt(k)      beta = sigmoid(W_b x)
    q, k = l2norm(silu(conv(W x)))  v = silu(conv(W_v x))   out = W_o norm(o)

k' S is what the memory now says to this key; only what is wrong with it is written. A key seen before is
overwritten instead of summed, so the memory recalls pairs that linear attention blurs. k must have length 1:
one step of gradient descent on |v - S' k|^2 / 2 with a rate of at most 1, which is what keeps the memory
bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.attention.parts.cost import Cost
from cutaway.attention.parts.recurrent import Recurring
from cutaway.errors import UserError
from cutaway.layers.config import Norm

if TYPE_CHECKING:
    from torch import nn


COST = Cost(
    prefill="n h (64 (2 k + 2 v) + 3 k v)",
    memory="2 n h (k + v)",
    decode="3 h k v",
    state="h k v + max(conv - 1, 0) h (2 k + v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(Recurring):
    """``conv``: how many tokens the short convolution over q, k and v sees, none of it when 0; ``norm`` is on
    each head's output.
    """

    conv: int = 4
    norm: Norm = Norm()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.conv < 0:
            raise UserError(
                f"attention: a short convolution cannot see {self.conv} tokens, conv must be 0 or more"
            )

    @property
    def channels(self) -> int:
        """How many numbers of a token are convolved: query, key and value, in this order."""
        return self.heads * (2 * self.key_size + self.values)

    @property
    def tail(self) -> int:
        return self.channels * max(self.conv - 1, 0)

    def build(self, width: int) -> nn.Module:
        from cutaway.attention.parts.delta import DeltaNet

        return DeltaNet(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        key, value = self.heads * self.key_size, self.heads * self.values
        shapes = {
            "query.weight": (key, width),
            "key.weight": (key, width),
            "value.weight": (value, width),
            "beta.weight": (self.heads, width),
            "out.weight": (width, value),
        }
        if self.conv:
            shapes["conv.weight"] = (self.channels, self.conv)
        return shapes | {f"norm.{name}": shape for name, shape in self.norm.weights(self.values).items()}
