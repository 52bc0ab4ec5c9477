"""AltUp (2301.13310) and LAuReL (2411.07501), as Gemma 3n has them: several residual streams.

The stream is p vectors a token, of which a block computes the first; what it learns corrects all of them:

    m(x) = tanh(W_m norm(x) / d)                    p numbers of a vector
    y_i = x_i + sum_j P(m(x_0))_ij x_j              predicted, P = W_p m as a p x p matrix
    z = block(y_0)
    x_i = y_i + (1 + (W_c m(z))_i) (z - y_0)        corrected
    x_i = x_i + e(s x_0), i > 0                     e: what the block adds of its per-layer embedding

So that a model's width grows p times at the cost of p x p numbers a token. LAuReL is a low-rank matrix beside
attention, whose output is added to the residual stream:

    middle = (x + attention(n) + n + norm(W_2 W_1 n)) / sqrt(2)        n = norm(x)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.layers.config import Norm
from cutaway.layers.norm import widened
from cutaway.shapes import Float


class Streams(nn.Module):
    """The p vectors of a token's embedding, and the one vector that the head reads of them."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.expand = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count - 1))
        self.merge = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count - 1))

    def expanded(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t n"]:
        """The embedding, and others made of it that are as large, side by side."""
        return torch.cat((x, *(_as_large(matrix(x), x) for matrix in self.expand)), dim=-1)

    def merged(self, x: Float[Tensor, "b t n"]) -> Float[Tensor, "b t d"]:
        """The mean of the first vector and of what is made of the others, as large as the first."""
        first, *others = x.chunk(self.count, dim=-1)
        made = (_as_large(matrix(each), first) for matrix, each in zip(self.merge, others, strict=True))
        return torch.stack((first, *made)).mean(dim=0)


def _as_large(x: Float[Tensor, "b t d"], other: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
    """x with the other's root mean square."""
    wanted, own = (each.square().mean(-1, keepdim=True) for each in (other, x))
    return x * wanted.sqrt() / own.clamp(min=1e-5).sqrt()


class AltUp(nn.Module):
    """What a block predicts of the streams, and how its output corrects them."""

    def __init__(self, count: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.count = count
        self.router_norm = norm.build(width)
        self.router = nn.Linear(width, count, bias=False)
        self.predict = nn.Linear(count, count * count, bias=False)
        self.correct = nn.Linear(count, count, bias=False)
        self.scale = nn.Parameter(torch.ones(width))

    def _modalities(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t p"]:
        return widened(self.router(self.router_norm(x) / x.shape[-1])).tanh().to(x.dtype)

    def predicted(self, x: Float[Tensor, "b t n"]) -> Float[Tensor, "b t p d"]:
        """The streams before the block."""
        streams = x.unflatten(-1, (self.count, -1))
        mixes = self.predict(self._modalities(streams[..., 0, :])).unflatten(-1, (self.count, -1))
        return streams + mixes @ streams

    def corrected(
        self, streams: Float[Tensor, "b t p d"], out: Float[Tensor, "b t d"]
    ) -> Float[Tensor, "b t p d"]:
        """The streams after a block with this output."""
        by = self.correct(self._modalities(out)) + 1.0
        return streams + by[..., None] * (out - streams[..., 0, :])[..., None, :]


class Laurel(nn.Module):
    """n + norm(W_2 W_1 n)."""

    def __init__(self, rank: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        self.norm = norm.build(width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return x + self.norm(self.up(self.down(x)))
