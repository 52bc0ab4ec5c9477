"""The module of ``attention/luong.py``, which has the equation and the config."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.common.alignment import Memory, attention_weights
from cutaway.attention.luong import Config
from cutaway.hooks import tap
from cutaway.shapes import Float, Int


class Multiplicative(nn.Module):
    """Taps ``scores`` and ``pattern`` [b t s], and with a window ``aligned_position`` [b t 1]."""

    def __init__(self, config: Config, query: int, memory: int) -> None:
        super().__init__()
        config.check(query, memory)
        self.config = config
        concat, local = config.score == "concat", config.window is not None
        self.key = nn.Identity() if config.score == "dot" else nn.Linear(memory, query, bias=False)
        self.query = nn.Linear(query, query, bias=False) if concat else nn.Identity()
        self.score = nn.Linear(query, 1, bias=False) if concat else nn.Identity()
        self.position = nn.Linear(query, query, bias=False) if local else nn.Identity()
        self.position_score = nn.Linear(query, 1, bias=False) if local else nn.Identity()

    def remember(self, values: Float[Tensor, "b s m"], pos: Int[Tensor, "b s"]) -> Memory:
        """The source with its keys, which all queries share: W h, or h where the score is ``dot``."""
        return Memory(values, self.key(values), pos)

    def forward(
        self, query: Float[Tensor, "b t q"], memory: Memory
    ) -> tuple[Float[Tensor, "b t m"], Float[Tensor, "b t s"]]:
        """c and p of each query."""
        if self.config.score == "concat":
            e = self.score(torch.tanh(self.query(query)[:, :, None] + memory.keys[:, None]))[..., 0]
        else:
            e = query @ memory.keys.transpose(1, 2)
        p = tap("pattern", self._weights(e, query, memory).to(query.dtype))
        return p @ memory.values, p

    def _weights(self, e: Tensor, query: Tensor, memory: Memory) -> Float[Tensor, "b t s"]:
        """The softmax; with a window only within D of P, and less the further from it."""
        if self.config.window is None:
            return attention_weights(e, memory.seen)
        length = memory.seen.sum(-1, keepdim=True)
        P = tap("aligned_position", length * self.position_score(torch.tanh(self.position(query))).sigmoid())
        distance = memory.pos[:, None] - P
        near = attention_weights(e, memory.seen & (distance.abs() <= self.config.window))
        return near * torch.exp(-distance.square() / (2 * (self.config.window / 2) ** 2))
