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

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import Shapes, under
from cutaway.bounds import Fraction, Positive
from cutaway.errors import UserError
from cutaway.layers.config import Norm

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

    module = "cutaway.attention.modules.differential:DifferentialAttention"
    maps = 2

    lambda_start: Fraction = 0.8
    eps: Positive = 1e-5
    norm_weight: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_heads % 2:  # ``heads`` is a multiple of it
            raise UserError(
                f"attention: differential heads come in pairs: {self.heads} over {self.kv_heads} do not"
            )

    def weights(self, width: int) -> Shapes:
        norm = Norm("rms", self.eps, self.norm_weight).weights(2 * self.values)
        return super().weights(width) | dict.fromkeys(LAMBDAS, (self.key_size,)) | under("head_norm", norm)
