"""LoRA (2106.09685): a product of two small matrices beside each frozen one.

    y = W x + s B A dropout(x)      A [r in], B [out r], s = alpha / r, or alpha / sqrt(r) (rank-stabilised)

B starts at zero, so that training starts at the base model; A as a linear layer does (kaiming uniform, a =
sqrt 5). Rank-stabilised: 2312.03732. W may stay packed as it is in its file (QLoRA, 2305.14314).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.bounds import Bounded, Count, Decay, Positive
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float
from cutaway.train.adapters import MATRICES, Adapter, Matrix, array, freeze, matrices
from cutaway.weights.adapters import LowRank


@dataclass(frozen=True)
class Config(Bounded):
    """``targets`` are names of matrices in a block; ``rank_stabilised`` divides alpha by sqrt(rank)."""

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Decay = 0.0
    rank_stabilised: bool = False
    targets: tuple[str, ...] = MATRICES

    @property
    def scale(self) -> float:
        """What multiplies B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def attach(self, model: Decoder) -> None:
        """Freeze the model and put a trained pair beside each target; UserError for one that is missing."""
        freeze(model)
        for parent, name, _, matrix in list(matrices(model, self.targets)):
            setattr(parent, name, LoRALinear(matrix, self))

    def changes(self, model: Decoder) -> dict[str, LowRank]:
        """The trained pairs by our names of weights."""
        return {
            f"{name}.weight": LowRank(array(module.a), array(module.b), self.scale)
            for name, module in model.named_modules()
            if isinstance(module, LoRALinear)
        }


class LoRALinear(Adapter):
    """A frozen matrix [out in] with its trained pair."""

    def __init__(self, base: Matrix, config: Config) -> None:
        super().__init__()
        self.base, self.config = base, config
        rows, columns = shape_of(base)
        self.a = nn.Parameter(torch.empty(config.rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, config.rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        if not self.enabled:
            return self.base(x)
        out = self.base(x)
        reduced = F.linear(F.dropout(x, self.config.dropout, self.training), self.a)
        # In place: the base's product is nobody else's. Autocast leaves operands of in-place products alone.
        reduced, b = reduced.to(out.dtype), self.b.to(out.dtype)
        flat = out.flatten(0, -2).addmm_(reduced.flatten(0, -2), b.T, alpha=self.config.scale)
        return flat.view_as(out)


def shape_of(matrix: Matrix) -> tuple[int, int]:
    """[out in] without unpacking."""
    shape = matrix.weight.shape if isinstance(matrix, nn.Linear) else matrix.packed.shape
    return shape[0], shape[1]
