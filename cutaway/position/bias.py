"""The modules of ALiBi and T5's biases: positions of queries and keys in, a bias for each score out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cutaway.position import alibi, t5
from cutaway.shapes import Float, Int


class Alibi(nn.Module):
    """-slope |i - j|."""

    def __init__(self, config: alibi.Config, heads: int) -> None:
        super().__init__()
        self.slopes = config.slopes(heads)

    def forward(self, query: Int[Tensor, "b t"], key: Int[Tensor, "b s"]) -> Float[Tensor, "b h t s"]:
        apart = (query[:, None, :, None] - key[:, None, None, :]).abs()
        slopes = torch.tensor(self.slopes, dtype=torch.float64, device=query.device)[:, None, None]
        return -slopes * apart


class Buckets(nn.Embedding):
    """The learned number of each head for the bucket of j - i."""

    def __init__(self, config: t5.Config, heads: int) -> None:
        super().__init__(config.buckets, heads)
        self.config = config

    def forward(self, query: Int[Tensor, "b t"], key: Int[Tensor, "b s"]) -> Float[Tensor, "b h t s"]:
        bucket = self.bucket(key[:, None, :] - query[:, :, None])
        return super().forward(bucket).permute(0, 3, 1, 2)

    def bucket(self, offset: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The bucket of a key that is ``offset`` tokens after the query."""
        buckets, first = self.config.buckets, 0
        if self.config.both_ways:
            buckets //= 2
            first, apart = (offset > 0) * buckets, offset.abs()
        else:
            apart = (-offset).clamp(min=0)
        exact = buckets // 2
        wide = (apart.clamp(min=1) / exact).log() / math.log(self.config.distance / exact) * (buckets - exact)
        far = (exact + wide.long()).clamp(max=buckets - 1)
        return first + torch.where(apart < exact, apart, far)
