"""DeltaNet (2102.11174, in parallel 2406.06484): a token does not add to the state, it corrects it.

    S = S + beta k (v - k' S)'      z = q' S / sqrt(k)      beta = sigmoid(W_b x)
    q, k = l2norm(silu(conv(W x)))  v = silu(conv(W_v x))   out = W_o norm(z)

k' S is the value that the state now returns for this key; only its error is written. A key seen before is
overwritten instead of summed, so the state recalls pairs that linear attention blurs. k must have norm 1: the
update is one step of gradient descent on |v - S' k|^2 / 2 with a step size of at most 1, which keeps the
state bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.linear_config import LinearConfig
from cutaway.attention.common.mixer import Shapes, linear, under
from cutaway.bounds import Natural
from cutaway.layers.config import Norm

COST = Cost(
    prefill="n h (32 (4 k + 3 v) + 3 k v)",
    memory="2 n h (k + v)",
    decode="3 h k v",
    state="h k v + max(conv - 1, 0) h (2 k + v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(LinearConfig):
    """``conv``: tokens that the short convolution over q, k and v sees, 0 for none; ``norm``: each head's."""

    module = "cutaway.attention.modules.delta:DeltaNet"

    conv: Natural = 4
    norm: Norm = Norm()

    def weights(self, width: int) -> Shapes:
        shapes = super().weights(width) | linear("beta", self.heads, width)
        if self.conv:
            shapes["conv.weight"] = (self.channels, self.conv)
        return shapes | under("norm", self.norm.weights(self.values))
