"""The torch modules of the kinds of table. Each starts with rows of deviation 0.02, as a plain table does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.shapes import Float, Int

START = 0.02


class LowRank(nn.Module):
    """``rows`` [v r] widened by ``widen`` [r d]."""

    def __init__(self, vocab: int, width: int, rank: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(vocab, rank) * START)
        self.widen = nn.Parameter(torch.randn(rank, width) * rank**-0.5)

    @property
    def weight(self) -> Float[Tensor, "v d"]:
        return self.rows @ self.widen

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        return self.rows[ids] @ self.widen


class Hashed(nn.Module):
    """``importance`` [v k] of the k of ``shared`` [n d] that a token's hashes pick."""

    def __init__(self, vocab: int, width: int, buckets: int, hashes: int) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.randn(buckets, width) * START)
        self.importance = nn.Parameter(torch.ones(vocab, hashes) + torch.randn(vocab, hashes) * START)

    @property
    def weight(self) -> Float[Tensor, "v d"]:
        return self(torch.arange(len(self.importance), device=self.importance.device))

    def forward(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        rows = self.shared[hashed(ids, len(self.shared), self.importance.shape[1])]
        return (self.importance[ids][..., None] * rows).sum(-2) * self.importance.shape[1] ** -0.5


def hashed(ids: Int[Tensor, "*b"], buckets: int, hashes: int) -> Int[Tensor, "*b k"]:
    """Each id's row by each of k hash functions: multiply, mix, take the remainder (xorshift-multiply)."""
    mixed = ids[..., None] * hashes + torch.arange(hashes, device=ids.device) + 1
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 16)) % buckets
