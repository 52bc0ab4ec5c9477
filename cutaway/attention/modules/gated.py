"""The module of ``attention/gated.py``, which has the equation and the config."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from cutaway.attention.common.softmax import SoftmaxAttention, cut
from cutaway.attention.gated import Config
from cutaway.hooks import tap
from cutaway.shapes import Float


class GatedAttention(SoftmaxAttention):
    """Also taps ``gate`` [b t h*v], or [b t h], and ``out_input`` [b h t v], z times the gate."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.softplus, size = config.softplus, 1 if config.per_head else config.values
        self.gate = nn.Linear(width, config.heads * size, config.bias)

    def output(self, x: Float[Tensor, "b t d"], z: Float[Tensor, "b h t v"]) -> Float[Tensor, "b h t v"]:
        """z times the gate."""
        gate = self.gate(x)
        gate = tap("gate", functional.softplus(gate) if self.softplus else gate.sigmoid())
        return tap("out_input", cut(gate, self.config.heads) * z)
