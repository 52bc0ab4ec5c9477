"""The module of ``attention/bahdanau.py``, which has the equation and the config."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.bahdanau import Config
from cutaway.attention.common.alignment import Memory, attention_weights
from cutaway.hooks import tap
from cutaway.shapes import Float, Int


class Additive(nn.Module):
    """Taps ``scores`` and ``pattern`` [b t s]."""

    def __init__(self, config: Config, query: int, memory: int) -> None:
        super().__init__()
        self.query = nn.Linear(query, config.size, bias=False)
        self.key = nn.Linear(memory, config.size)
        self.score = nn.Linear(config.size, 1, bias=False)

    def remember(self, values: Float[Tensor, "b s m"], pos: Int[Tensor, "b s"]) -> Memory:
        """The source with its keys U h, which all queries share."""
        return Memory(values, self.key(values), pos)

    def forward(
        self, query: Float[Tensor, "b t q"], memory: Memory
    ) -> tuple[Float[Tensor, "b t m"], Float[Tensor, "b t s"]]:
        """c and p of each query."""
        e = self.score(torch.tanh(self.query(query)[:, :, None] + memory.keys[:, None]))[..., 0]
        p = tap("pattern", attention_weights(e, memory.seen).to(query.dtype))
        return p @ memory.values, p
