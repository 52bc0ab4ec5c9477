"""Cross-attention (1706.03762): queries of one text, keys and values of an encoder's output of another.

    q = W_q x    k = W_k m    v = W_v m        every token of x may read every token of the memory m

It joins a decoder to an encoder (T5, Whisper) or a text to an image. The memory's keys and values are
computed once: the cache does not grow with what is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import LayerState, Shapes, linear
from cutaway.attention.common.visibility import All, Visibility
from cutaway.bounds import Count
from cutaway.errors import UserError

COST = Cost(
    prefill="n s h (k + v)",
    memory="(n h + s g) (k + v)",
    decode="s h (k + v)",
    state="s g (k + v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """``memory_width``: of the encoder's output, None for the same; bytes are of a token of that output."""

    module = "cutaway.attention.modules.cross:CrossAttention"
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

    def weights(self, width: int) -> Shapes:
        memory = width if self.memory_width is None else self.memory_width
        keys = linear("key", self.groups * self.key_size, memory, self.bias)
        return super().weights(width) | keys | linear("value", self.groups * self.values, memory, self.bias)

    def state(self) -> LayerState:
        from cutaway.attention.state.caches import Cross

        return Cross()
