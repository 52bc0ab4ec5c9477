"""The module of ``attention/disentangled.py``, which has the equation and the config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cutaway.attention.backends import naive
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.softmax import SoftmaxAttention
from cutaway.attention.common.visibility import Positions
from cutaway.attention.disentangled import Config
from cutaway.shapes import Float, Int


class DisentangledAttention(SoftmaxAttention):
    """Taps what softmax attention taps. Its scores need all pairs of tokens in memory."""

    config: Config

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        size = config.heads * config.key_size
        self.key = nn.Linear(width, size, config.bias and config.key_bias)
        self.relative = config.relative.build(width)
        self.scale = (config.key_size * config.terms) ** -0.5
        own = not config.shared_projections
        self.distance_key = self.distance_query = None
        if own and config.content_to_position:
            self.distance_key = nn.Linear(width, size, config.distance_bias)
        if own and config.position_to_content:
            self.distance_query = nn.Linear(width, size)

    def attend(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b g s k"],
        v: Float[Tensor, "b g s v"],
        query: Positions,
        key: Positions,
        in_order: bool,
    ) -> Float[Tensor, "b h t v"]:
        vectors, chosen = self.relative(), self.chosen(query.pos, key.pos)[:, None]
        added: Any = 0.0
        if self.config.content_to_position:
            keys = self._projected(self.distance_key or self.key, vectors)
            added = (q @ keys.mT).gather(-1, chosen.expand(-1, q.shape[1], -1, -1))
        if self.config.position_to_content:
            queries = self._projected(self.distance_query or self.query, vectors)
            read = (k @ queries.mT).gather(-1, chosen.mT.expand(-1, k.shape[1], -1, -1))
            added = added + read.mT
        added = added * self.scale
        seen = self.config.visibility
        return naive.attend(AttentionInputs(q, k, v, query, key, seen, self.scale, bias=lambda *_: added))

    def _projected(self, matrix: nn.Module, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "h n k"]:
        return matrix(vectors).unflatten(-1, (self.config.heads, -1)).transpose(0, 1)

    def chosen(self, query: Int[Tensor, "b t"], key: Int[Tensor, "b s"]) -> Int[Tensor, "b t s"]:
        """The row of the table that is the vector of each pair's distance."""
        span, farthest = self.config.relative.span, self.config.relative.farthest
        apart = query[:, :, None] - key[:, None, :]
        if farthest is not None:
            half = span // 2
            far = apart.abs().clamp(min=half)
            # In float32 and this order, as DeBERTa computes it: a rounding decides which vector is taken.
            scale = torch.log(torch.tensor((farthest - 1) / half))
            steps = torch.ceil(torch.log(far / half) / scale.to(far.device) * (half - 1)) + half
            apart = torch.where(apart.abs() <= half, apart, steps.long() * apart.sign())
        return (apart + span).clamp(0, 2 * span - 1)
