"""RMSNorm and LayerNorm: scale each token's vector to a fixed size before a block reads it."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cutaway.hooks import tap, watched
from cutaway.layers.swiglu import fits
from cutaway.layers.workers import workers
from cutaway.native import train as native_norm
from cutaway.shapes import Float

LANES = 16  # numbers that the core takes at once


def widened(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in float32, or as it is when it is wider: sums over a row need the precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _inverse(square: Float[Tensor, "... 1"], eps: float) -> tuple[Float[Tensor, "... 1"], bool]:
    """1 / sqrt(square + eps), and whether an edit changed it. Taps ``scale`` [... 1], its reciprocal."""
    inverse = torch.rsqrt(square + eps)
    if not watched("scale"):
        return inverse, False
    scale = inverse.reciprocal()
    changed = tap("scale", scale)
    return (inverse, False) if changed is scale else (changed.reciprocal(), True)


class RMSNorm(nn.Module):
    """y = w x / sqrt(mean(x^2) + eps) (1910.07467), in float32 at least, returned in x's type.

    ``learned`` names the weights that there are.
    """

    def __init__(self, width: int, eps: float, learned: Collection[str] = ("weight",)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if "weight" in learned else None
        self.eps = eps

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        wide = widened(x)
        if self._frozen and wide.requires_grad and torch.is_grad_enabled() and not watched("scale"):
            return _FrozenRMSNorm.apply(wide, self.weight, self.eps).to(x.dtype)  # type: ignore[attr-defined]
        wide = wide * _inverse(wide.square().mean(-1, keepdim=True), self.eps)[0]
        return (wide if self.weight is None else wide * self.weight).to(x.dtype)

    @property
    def _frozen(self) -> bool:
        return not (torch.compiler.is_compiling() or (self.weight is not None and self.weight.requires_grad))


class _FrozenRMSNorm(torch.autograd.Function):
    """y = w x r, r = 1 / sqrt(mean(x^2) + eps), and by dy: dx = r (w dy) - x r^3 mean(x w dy).

    The native core goes over memory once each way, where torch's operations, its reference implementation,
    do so for each of them (native/train/norm.cpp).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        ctx.native = x.shape[-1] % LANES == 0 and fits(*(t for t in (x, weight) if t is not None))
        if ctx.native:
            out, inverse = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1)
            native_norm.rms_norm(_given(x, weight, inverse, out, eps=eps), workers())
            ctx.save_for_backward(x, inverse, weight)
            return out
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, inverse, weight)
        out = x * inverse
        return out if weight is None else out.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        if ctx.native:
            grad, out = grads[0].contiguous(), torch.empty_like(x)
            native_norm.rms_norm_backward(_given(x, weight, inverse, out, grad), workers())
            return out, None, None
        grad = grads[0] if weight is None else grads[0] * weight
        along = (grad * x).mean(-1, keepdim=True)
        return (grad * inverse).addcmul_(x, along * inverse**3, value=-1), None, None


def _given(
    x: Tensor,
    weight: Tensor | None,
    inverse: Tensor,
    out: Tensor,
    grad: Tensor | None = None,
    eps: float = 0.0,
) -> native_norm.Normed:
    width = x.shape[-1]
    addresses = (None if each is None else each.data_ptr() for each in (x, weight, grad, inverse, out))
    return native_norm.Normed(*addresses, x.numel() // width, width, eps)


class LayerNorm(nn.Module):
    """y = w (x - mean(x)) / sqrt(var(x) + eps) + b (1607.06450), computed likewise."""

    def __init__(self, width: int, eps: float, learned: Collection[str] = ("weight", "bias")) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width)) if "weight" in learned else None
        self.bias = nn.Parameter(torch.zeros(width)) if "bias" in learned else None

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        weight, bias = (None if part is None else widened(part) for part in (self.weight, self.bias))
        wide = widened(x)
        if watched("scale"):
            inverse, edited = _inverse(wide.var(-1, correction=0, keepdim=True), self.eps)
            if edited:
                y = (wide - wide.mean(-1, keepdim=True)) * inverse * (1 if weight is None else weight)
                return (y if bias is None else y + bias).to(x.dtype)
        return F.layer_norm(wide, (self.width,), weight, bias, self.eps).to(x.dtype)
