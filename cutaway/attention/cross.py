"""Cross-attention (1706.03762): queries come from the text being written, keys and values from another,
read before.

    q = W_q x    k = W_k m    v = W_v m        every token of x may read every token of the memory m

It joins a decoder to an encoder (T5, Whisper) or a text to an image. The memory's keys and values are made
once and only read from then on: the cache does not grow with what is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cutaway.attention import gqa
from cutaway.attention.parts.cost import Cost
from cutaway.attention.parts.visibility import All, Visibility
from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from cutaway.attention.parts.state import Cross


COST = Cost(
    prefill="n s h (k + v)",
    memory="(n h + s g) (k + v)",
    decode="s h (k + v)",
    state="s g (k + v)",
)


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """``bytes_per_token`` counts tokens of the memory. ``memory_width`` is the memory's width, the
    text's own when None.
    """

    reads: ClassVar[Literal["past", "all", "memory"]] = "memory"

    memory_width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position is not None or self.relative is not None:
            raise UserError(
                "attention: two texts have no distance between them, cross-attention takes no position"
            )

    @property
    def visibility(self) -> Visibility:
        return All()

    def build(self, width: int) -> nn.Module:
        from cutaway.attention.parts.cross import CrossAttention

        return CrossAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        memory = width if self.memory_width is None else self.memory_width
        own = super().weights(width)
        return own | {name: (own[name][0], memory) for name in ("key.weight", "value.weight")}

    def state(self) -> Cross:
        from cutaway.attention.parts.state import Cross

        return Cross()
