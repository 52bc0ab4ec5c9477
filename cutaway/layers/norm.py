"""Norms: each token's vector is scaled to a fixed size before a block reads it."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.shapes import Float


def widened(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in float32, or as it is when it is wider: sums over a row need the precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide if self.weight is None else wide * self.weight).to(x.dtype)


class LayerNorm(nn.Module):
    """y = w (x - mean(x)) / sqrt(var(x) + eps) + b (1607.06450), computed likewise."""

    def __init__(self, width: int, eps: float, learned: Collection[str] = ("weight", "bias")) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width)) if "weight" in learned else None
        self.bias = nn.Parameter(torch.zeros(width)) if "bias" in learned else None

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        weight, bias = (None if part is None else widened(part) for part in (self.weight, self.bias))
        return F.layer_norm(widened(x), (self.width,), weight, bias, self.eps).to(x.dtype)
