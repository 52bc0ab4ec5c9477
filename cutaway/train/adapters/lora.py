"""LoRA (2106.09685): a product of two small matrices beside each frozen one.

    y = W x + s B A dropout(x)      A [r in], B [out r], s = alpha / r, or alpha / sqrt(r) (rank-stabilised)

B starts at zero, so that training starts at the base model; A as a linear layer does (kaiming uniform, a =
sqrt 5). Rank-stabilised: 2312.03732. W may stay packed as it is in its file (QLoRA, 2305.14314).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cutaway.bounds import Bounded, Count, Decay, Positive
from cutaway.layers.product import product_type
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float
from cutaway.train.adapted import MATRICES, Adapter, Matrix, array, freeze, matrices
from cutaway.train.adapters.frozen import frozen, frozen_product, input_gradient
from cutaway.weights.changes import LowRank


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
            return frozen(self.base, x)
        dropped = F.dropout(x, self.config.dropout, self.training)
        if torch.compiler.is_compiling():
            return frozen(self.base, x) + self._change(dropped)
        read = None if dropped is x else dropped
        return _Beside.apply(x, read, self.a, self.b, self.base, self.config.scale)  # type: ignore[return-value]

    def plain(self, x: Float[Tensor, "... in"], dropped: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """The equation by torch's own operations: the reference implementation."""
        return self.base(x) + self._change(dropped).to(product_type(x))

    def _change(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        return self.config.scale * F.linear(F.linear(x, self.a), self.b)


class _Beside(torch.autograd.Function):
    """W x + bias + scale B A read (None: of x), added up where the base's product is.

    So is the gradient of x: apart, its two parts are written, read and added once more, and an in-place sum
    in the graph copies what passes it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, read: Tensor | None, a: Tensor, b: Tensor, base: Matrix, scale: float
    ) -> Tensor:
        kind = product_type(x)
        rows = x.flatten(0, -2).to(kind)
        flat, a, b = rows if read is None else read.flatten(0, -2).to(kind), a.to(kind), b.to(kind)
        with torch.autocast(x.device.type, enabled=False):
            reduced = flat @ a.T
            out = frozen_product(base, rows, (reduced, scale * b.T))
        ctx.save_for_backward(flat, a, b, reduced)
        ctx.given = base, scale, x.shape, read is None
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, a, b, reduced = ctx.saved_tensors
        base, scale, shape, together = ctx.given
        grad, grad_x, grad_read = grads[0].flatten(0, -2), None, None
        narrow = (grad @ b).mul_(scale)
        if ctx.needs_input_grad[0]:
            grad_x = input_gradient(base, grad, *([(narrow, a)] if together else [])).view(shape)
        if not together:
            grad_read = (narrow @ a).view(shape)
        # A wide result of few rows takes less time than a tall one of few columns.
        grad_b = (reduced.T @ grad).mul_(scale).T.contiguous()
        return grad_x, grad_read, narrow.T @ flat, grad_b, None, None


def shape_of(matrix: Matrix) -> tuple[int, int]:
    """[out in] without unpacking."""
    shape = matrix.weight.shape if isinstance(matrix, nn.Linear) else matrix.packed.shape
    return shape[0], shape[1]
