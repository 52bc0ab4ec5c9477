"""Gated DeltaNet (2412.06464), as Qwen3-Next has it: the delta rule, and a gate that forgets.

    S = a S;  S = S + beta k (v - k' S)'      z = q' S / sqrt(k)  beta = sigmoid(W_b x)
    log a = -exp(A_log) softplus(W_a x + dt_bias)                 one gate a head, set by the token (Mamba 2)
    q, k = l2norm(silu(conv(W x)))  v = silu(conv(W_v x))         out = W_o [silu(W_g x) * norm(z)]

Qwen3-Next uses it in three layers of four. The gate clears the whole state at once, the delta rule corrects
it pair by pair: each does what the other cannot. Several value heads may share a key head, as in
grouped-query attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_config import LinearConfig
from cutaway.attention.common.mixer import Shapes, linear, under
from cutaway.bounds import Count
from cutaway.errors import UserError
from cutaway.layers.config import Norm

COST = Cost(
    prefill="n h (32 (4 k + 3 v) + 3 k v)",
    memory="2 n h (k + v)",
    decode="3 h k v",
    state="h k v + (conv - 1) (2 g k + h v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``key_heads`` query and key heads, a divisor of the ``heads`` value heads, as many when None.

    ``conv``: tokens that the short convolution over q, k and v sees, or one of each where they are ``apart``;
    ``norm``: each head's. A ``negative`` eigenvalue of the state's step needs a beta of up to 2 (2411.12537,
    OLMo Hybrid).
    """

    module = "cutaway.attention.modules.gated_delta:GatedDeltaNet"

    key_heads: Count | None = None
    conv: Count = 4
    norm: Norm = Norm(eps=1e-6)
    apart: bool = False
    negative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads % self.groups:
            raise UserError(f"attention.key_heads is {self.groups}; it must divide heads ({self.heads})")

    @property
    def groups(self) -> int:
        """How many query and key heads there are."""
        return self.heads if self.key_heads is None else self.key_heads

    def weights(self, width: int) -> Shapes:
        shapes = (
            super().weights(width) | linear("beta", self.heads, width) | linear("forget", self.heads, width)
        )
        shapes |= under("decay", decay_weights(self.heads)) | linear("gate", self.heads * self.values, width)
        keys, values = self.groups * self.key_size, self.heads * self.values
        parts = {"query": keys, "key": keys, "value": values} if self.apart else {"": self.channels}
        shapes |= {f"conv.{part}.weight".replace("..", "."): (n, self.conv) for part, n in parts.items()}
        return shapes | under("norm", self.norm.weights(self.values))


def decay_weights(heads: int, channels: int = 1) -> Shapes:
    """The shapes of a decay's weights, with so many gates a head."""
    return {"A_log": (heads,), "dt_bias": (heads * channels,)}
