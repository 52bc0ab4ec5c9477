"""Softmax attention that reads twice; ``attention/differential.py`` tells the mechanism."""

import torch
from torch import Tensor, nn

from cutaway.attention.differential import LAMBDAS, Config
from cutaway.attention.parts.softmax import SoftmaxAttention
from cutaway.attention.parts.visibility import Places
from cutaway.hooks import tap
from cutaway.layers.norm import RMSNorm
from cutaway.shapes import Float


class DifferentialAttention(SoftmaxAttention):
    """The heads of ``q``, ``k``, ``v``, ``scores`` and ``pattern`` are both halves; ``mixed`` [b h/2 t 2v]
    is their difference. Taps ``lambda``, a single number, besides.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.start = config.lambda_start
        for name in LAMBDAS:
            self.register_parameter(name, nn.Parameter(torch.randn(config.key_size) * 0.1))
        self.head_norm = RMSNorm(2 * config.values, config.eps)

    def mixed(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b g s k"],
        v: Float[Tensor, "b g s v"],
        query: Places,
        key: Places,
        in_order: bool,
    ) -> Float[Tensor, "b _ t _"]:
        both = torch.cat(v.chunk(2, dim=1), dim=-1)
        read = super().mixed(q, k, torch.cat((both, both), dim=1), query, key, in_order)
        one, two = read.chunk(2, dim=1)
        return (1 - self.start) * self.head_norm(one - tap("lambda", self._lambda()) * two)

    def _lambda(self) -> Float[Tensor, ""]:
        a1, b1, a2, b2 = (self.get_parameter(name) for name in LAMBDAS)
        return (a1 * b1).sum().exp() - (a2 * b2).sum().exp() + self.start
