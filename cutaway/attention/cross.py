"""Cross-attention (1706.03762): queries of one text, keys and values of an encoder's output of another.

    q = W_q x    k = W_k m    v = W_v m        every token of x may read every token of the memory m

It joins a decoder to an encoder (T5, Whisper) or a text to an image. The memory's keys and values are
computed once: the cache does not grow with what is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import weight_shapes
from cutaway.attention.common.softmax import SoftmaxAttention, cut, join
from cutaway.attention.common.visibility import All, Positions, Visibility
from cutaway.attention.state import Cross, Entries
from cutaway.bounds import Count
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.shapes import Float

COST = Cost(
    prefill="n s h (k + v)",
    memory="(n h + s g) (k + v)",
    decode="s h (k + v)",
    state="s g (k + v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """``memory_width``: of the encoder's output, None for the same; bytes are of a token of that output."""

    reads: ClassVar[Literal["past", "all", "memory"]] = "memory"

    memory_width: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position is not None or self.relative is not None:
            raise UserError(
                "attention: two texts have no distance between them, cross-attention takes no position"
            )

    @property
    def visibility(self) -> Visibility:
        return All()

    def build(self, width: int) -> CrossAttention:
        return CrossAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        return weight_shapes(self, width)

    def state(self) -> Cross:
        return Cross()


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
