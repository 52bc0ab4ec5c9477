"""The module of ``attention/differential.py``, which has the equation and the config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cutaway.attention.common.softmax import SoftmaxAttention
from cutaway.attention.differential import LAMBDAS, Config
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.shapes import Float


class DifferentialAttention(SoftmaxAttention):
    """Also taps ``lambda``, a single number.

    The heads of ``q``, ``k``, ``v``, ``scores`` and ``pattern`` are both halves; ``z`` [b h/2 t 2v] is their
    difference.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.start, self.eps = config.lambda_start, config.eps
        for name in LAMBDAS:
            self.register_parameter(name, nn.Parameter(torch.empty(config.key_size).normal_(std=0.1)))
        self.head_norm = Norm("rms", config.eps, config.norm_weight).build(2 * config.values)

    def attend(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b g s k"],
        v: Float[Tensor, "b g s v"],
        *where: Any,
    ) -> Float[Tensor, "b _ t _"]:
        pairs = torch.cat(v.chunk(2, dim=1), dim=-1)
        one, two = super().attend(q, k, torch.cat((pairs, pairs), dim=1), *where).chunk(2, dim=1)
        return (1 - self.start) * self.head_norm(one - tap("lambda", self._lambda()) * two)

    def _lambda(self) -> Float[Tensor, ""]:
        a1, b1, a2, b2 = (self.get_parameter(name) for name in LAMBDAS)
        return (a1 * b1).sum().exp() - (a2 * b2).sum().exp() + self.start
