"""Gated DeltaNet (2412.06464), as Qwen3-Next has it: the delta rule, and a gate that forgets.

    S = a S;  S = S + beta k (v - k' S)'      o = q' S / sqrt(k)  beta = sigmoid(W_b x)
    log a = -exp(A_log) softplus(W_a x + dt_bias)                 one gate a head, set by the token (Mamba 2)
    q, k = l2norm(silu(conv(W x)))  v = silu(conv(W_v x))         out = W_o [silu(W_g x) * norm(o)]

Qwen3-Next uses it in three layers of four. The gate clears the memory of all at once, the delta rule corrects
it pair by pair: each does what the other cannot. Several value heads may share a key head, as in
grouped-query attention.
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
    state="h k v + (conv - 1) (2 g k + h v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(Recurring):
    """``heads`` value heads; ``key_heads`` query and key heads, a divisor of ``heads``, as many when None;
    ``conv``: how many tokens the short convolution over q, k and v sees; ``norm`` is on each head's output.
    """

    key_heads: int | None = None
    conv: int = 4
    norm: Norm = Norm(eps=1e-6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1 or self.heads % self.groups:
            raise UserError(
                f"attention: {self.heads} value heads cannot share {self.groups} key heads evenly"
            )
        if self.conv < 1:
            raise UserError(
                "attention: the short convolution sees the token itself at least, conv must be 1 or more"
            )

    @property
    def groups(self) -> int:
        """How many query and key heads there are."""
        return self.heads if self.key_heads is None else self.key_heads

    @property
    def channels(self) -> int:
        """How many numbers of a token are convolved: query, key and value, in this order."""
        return 2 * self.groups * self.key_size + self.heads * self.values

    @property
    def tail(self) -> int:
        return self.channels * (self.conv - 1)

    def build(self, width: int) -> nn.Module:
        from cutaway.attention.parts.gated_delta import GatedDeltaNet

        return GatedDeltaNet(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        key, value = self.groups * self.key_size, self.heads * self.values
        shapes = {
            "fading.A_log": (self.heads,),
            "fading.dt_bias": (self.heads,),
            "query.weight": (key, width),
            "key.weight": (key, width),
            "value.weight": (value, width),
            "beta.weight": (self.heads, width),
            "forget.weight": (self.heads, width),
            "gate.weight": (value, width),
            "conv.weight": (self.channels, self.conv),
            "out.weight": (width, value),
        }
        return shapes | {f"norm.{name}": shape for name, shape in self.norm.weights(self.values).items()}
