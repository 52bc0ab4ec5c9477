"""Attention with a norm before its output matrix (BitNet b1.58, 2504.12285).

    out = W_o norm([z_1 ... z_h])

Where activations are rounded to eight bits, each matrix reads normed ones. The norm is over all heads as one
vector; its factor of each number is a gate like that of gated attention, made of the numbers themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutaway.attention import gated
from cutaway.attention.common.cost import SOFTMAX
from cutaway.attention.common.mixer import weight_shapes
from cutaway.attention.common.softmax import cut, join
from cutaway.bounds import Positive
from cutaway.hooks import tap
from cutaway.layers.norm import widened
from cutaway.shapes import Float

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(gated.Config):
    """Grouped-query heads whose outputs are normed together; ``eps`` is the norm's."""

    eps: Positive = 1e-5

    def build(self, width: int) -> SubNormAttention:
        return SubNormAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        return weight_shapes(self, width)


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
