"""Additive attention as a module; ``attention/bahdanau.py`` tells the mechanism."""

import torch
from torch import Tensor, nn

from cutaway.attention.bahdanau import Config
from cutaway.attention.parts.alignment import Memory, shares
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
        """What all queries of this source share."""
        return Memory(values, self.key(values), pos)

    def forward(
        self, query: Float[Tensor, "b t q"], memory: Memory
    ) -> tuple[Float[Tensor, "b t m"], Float[Tensor, "b t s"]]:
        """What each query read, and its shares of the source."""
        scores = self.score(torch.tanh(self.query(query)[:, :, None] + memory.keys[:, None]))[..., 0]
        pattern = tap("pattern", shares(scores, memory.seen).to(query.dtype))
        return pattern @ memory.values, pattern
