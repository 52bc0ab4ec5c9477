"""The module of ``attention/cross.py``, which has the equation and the config."""

from __future__ import annotations

from torch import Tensor, nn

from cutaway.attention.common.softmax import SoftmaxAttention, cut, join
from cutaway.attention.common.visibility import Positions
from cutaway.attention.cross import Config
from cutaway.attention.state.caches import Cross
from cutaway.attention.state.entries import Entries
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
        positions: Positions,
        memory: Float[Tensor, "b s m"] | None,
        memory_positions: Positions | None,
        state: Cross | None = None,
    ) -> Float[Tensor, "b t d"]:
        """``memory`` and its positions may be None once a state holds them; UserError if neither is given."""
        q = tap("q", self._normed(self.query_norm, self.query(x), self.config.heads))
        entries, there = self._keys_and_values(memory, memory_positions, state)
        k, v = tap("k", entries["k"]), tap("v", entries["v"])
        return self.out(join(tap("z", self.attend(q, k, v, positions, there, False))))

    def _keys_and_values(
        self, memory: Tensor | None, positions: Positions | None, state: Cross | None
    ) -> tuple[Entries, Positions]:
        if state is not None and state.written:
            return state.entries, Positions(state.positions)
        if memory is None or positions is None:
            raise UserError("cross-attention: pass the encoder's memory, or a state that holds it")
        k = self._normed(self.key_norm, self.key(memory), self.config.groups)
        entries = {"k": k, "v": cut(self.value(memory), self.config.groups)}
        if state is not None:
            state.write(entries, positions.pos)
        return entries, positions
