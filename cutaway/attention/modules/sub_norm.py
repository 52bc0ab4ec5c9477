"""The module of ``attention/sub_norm.py``, which has the equation and the config."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.common.softmax import cut, join
from cutaway.attention.modules import gated
from cutaway.attention.sub_norm import Config
from cutaway.hooks import tap
from cutaway.layers.norm import widened
from cutaway.shapes import Float


class SubNormAttention(gated.GatedAttention):
    """Taps ``gate`` [b t h*v], the norm's factor of each number, and ``out_input`` [b h t v]."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        del self.gate
        self.eps = config.eps
        self.out_norm = nn.Parameter(torch.ones(config.heads * config.values))

    def output(self, x: Float[Tensor, "b t d"], z: Float[Tensor, "b h t v"]) -> Float[Tensor, "b h t v"]:
        """z, normed over all heads."""
        wide = widened(join(z))
        factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.out_norm
        return tap("out_input", cut(tap("gate", factor.to(z.dtype)), self.config.heads) * z)
