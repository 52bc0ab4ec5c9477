"""Multiplicative attention as a module; ``attention/luong.py`` tells the mechanism."""

import torch
from torch import Tensor, nn

from cutaway.attention.luong import Config
from cutaway.attention.parts.alignment import Memory, shares
from cutaway.hooks import tap
from cutaway.shapes import Float, Int


class Multiplicative(nn.Module):
    """Taps ``scores`` and ``pattern`` [b t s], and with a window ``place`` [b t 1], where it looks."""

    def __init__(self, config: Config, query: int, memory: int) -> None:
        super().__init__()
        self.config = config
        made = {
            name.removesuffix(".weight"): nn.Linear(shape[1], shape[0], bias=False)
            for name, shape in config.weights(query, memory).items()
        }
        nothing = nn.Identity()  # a score that does without
        self.key, self.query = made.get("key", nothing), made.get("query", nothing)
        self.score = made.get("score", nothing)
        self.place, self.place_score = made.get("place", nothing), made.get("place_score", nothing)

    def remember(self, values: Float[Tensor, "b s m"], pos: Int[Tensor, "b s"]) -> Memory:
        """What all queries of this source share: W h, or h where the product is plain."""
        return Memory(values, self.key(values), pos)

    def forward(
        self, query: Float[Tensor, "b t q"], memory: Memory
    ) -> tuple[Float[Tensor, "b t m"], Float[Tensor, "b t s"]]:
        """What each query read, and its shares of the source."""
        if self.config.score == "concat":
            scores = self.score(torch.tanh(self.query(query)[:, :, None] + memory.keys[:, None]))[..., 0]
        else:
            scores = query @ memory.keys.transpose(1, 2)
        pattern = tap("pattern", self._near(scores, query, memory).to(query.dtype))
        return pattern @ memory.values, pattern

    def _near(self, scores: Tensor, query: Tensor, memory: Memory) -> Float[Tensor, "b t s"]:
        """The shares; with a window only those near the predicted place, and the less the further from it."""
        if self.config.window is None:
            return shares(scores, memory.seen)
        length = memory.seen.sum(-1, keepdim=True)
        place = tap("place", length * self.place_score(torch.tanh(self.place(query))).sigmoid())
        distance = memory.pos[:, None] - place
        near = shares(scores, memory.seen & (distance.abs() <= self.config.window))
        return near * torch.exp(-distance.square() / (2 * (self.config.window / 2) ** 2))
