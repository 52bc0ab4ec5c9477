"""Products with an adapter's frozen matrix: packed ones have their kernels, floats ``layers/product.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cutaway.layers.packed import PackedLinear
from cutaway.layers.product import Pair, fits, linear, products
from cutaway.shapes import Float
from cutaway.train.adapted import Matrix


def frozen(base: Matrix, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
    """W x + bias with a gradient of x alone."""
    if (
        isinstance(base, PackedLinear)
        or not fits(x, base.weight.T)
        or torch.is_autocast_enabled(x.device.type)
    ):
        return base(x)
    if torch.compiler.is_compiling():
        return linear(x, base.weight) if base.bias is None else linear(x, base.weight) + base.bias
    return _Frozen.apply(x, base)  # type: ignore[return-value]


def frozen_product(base: Matrix, x: Float[Tensor, "n in"], *pairs: Pair) -> Float[Tensor, "n out"]:
    """W x + bias, and a b of each pair, in one sum without a gradient."""
    if isinstance(base, PackedLinear):
        out = base.product(x)
        for a, b in pairs:
            out.addmm_(a, b)
        return out
    out = products((x, base.weight.T.to(x.dtype)), *pairs)
    return out if base.bias is None else out.add_(base.bias)


def input_gradient(base: Matrix, grad: Float[Tensor, "n out"], *pairs: Pair) -> Float[Tensor, "n in"]:
    """The gradient of x by that of W x, and a b of each pair, in one sum."""
    if isinstance(base, PackedLinear):
        return base.input_gradient(grad, *pairs)
    return products((grad, base.weight.to(grad.dtype)), *pairs)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Matrix) -> Tensor:
        ctx.base = base
        return frozen_product(base, x.flatten(0, -2)).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = input_gradient(ctx.base, grads[0].flatten(0, -2))
        return grad.view(*grads[0].shape[:-1], -1), None
