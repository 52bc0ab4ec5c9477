"""Differential attention (2410.05258): each head attends twice, and the difference cancels noise.

The noise is what both attention maps have in common.

    z_h = (softmax(q1 k1') - lambda softmax(q2 k2')) v        out = W_o (1 - l0) [RMS(z_1) ... RMS(z_n)]
    lambda = exp(a1 . b1) - exp(a2 . b2) + l0

As in an amplifier that takes the difference of two wires. The first half of the query heads are the q1, the
second half their q2; so with keys; a value is two of the value heads side by side. l0 = 0.8 - 0.6
exp(-0.3 layer), layers counted from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import weight_shapes
from cutaway.attention.common.softmax import SoftmaxAttention
from cutaway.bounds import Fraction, Positive
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.shapes import Float

LAMBDAS = ("lambda_query_one", "lambda_key_one", "lambda_query_two", "lambda_key_two")
COST = Cost(
    prefill="n² h (k + 2 v) / 2",
    memory="n h (2 k + 4 v)",
    decode="n h (k + 2 v)",
    state="n g (k + v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """``heads`` and ``kv_heads`` count both halves; ``lambda_start`` is l0, ``eps`` the norm's.

    Without ``norm_weight`` the norm learns nothing (DiffLlama).
    """

    lambda_start: Fraction = 0.8
    eps: Positive = 1e-5
    norm_weight: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_heads % 2:  # of which ``heads`` is a multiple
            raise UserError(
                f"attention: differential heads come in pairs: {self.heads} over {self.kv_heads} do not"
            )

    def build(self, width: int) -> DifferentialAttention:
        return DifferentialAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        return weight_shapes(self, width)


class DifferentialAttention(SoftmaxAttention):
    """Taps ``lambda``, a single number, besides.

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
