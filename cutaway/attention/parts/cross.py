"""Softmax attention over another text; ``attention/cross.py`` tells the mechanism."""

from __future__ import annotations

from torch import Tensor, nn

from cutaway.attention.cross import Config
from cutaway.attention.parts.softmax import SoftmaxAttention, cut, join
from cutaway.attention.parts.state import Cross, Entries
from cutaway.attention.parts.visibility import Places
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.shapes import Float


class CrossAttention(SoftmaxAttention):
    """Taps what softmax attention taps; t are the text's tokens, s the memory's."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        memory = width if config.memory_width is None else config.memory_width
        self.key = nn.Linear(memory, config.groups * config.key_size, config.bias)
        self.value = nn.Linear(memory, config.groups * config.values, config.bias)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        places: Places,
        memory: Float[Tensor, "b s m"] | None,
        memory_places: Places | None,
        state: Cross | None = None,
    ) -> Float[Tensor, "b t d"]:
        """``memory`` and its places may be None once a state remembers them. UserError if there is
        neither.
        """
        q = tap("q", self._normed(self.query_norm, self.query(x), self.config.heads))
        entries, there = self._remembered(memory, memory_places, state)
        k, v = tap("k", entries["k"]), tap("v", entries["v"])
        return self.out(join(tap("mixed", self.mixed(q, k, v, places, there, False))))

    def _remembered(
        self, memory: Tensor | None, places: Places | None, state: Cross | None
    ) -> tuple[Entries, Places]:
        if state is not None and state.written:
            return state.entries, Places(state.places)
        if memory is None or places is None:
            raise UserError("cross-attention: there is no memory to read, and none was read before")
        k = self._normed(self.key_norm, self.key(memory), self.config.groups)
        entries = {"k": k, "v": cut(self.value(memory), self.config.groups)}
        if state is not None:
            state.write(entries, places.pos)
        return entries, places
