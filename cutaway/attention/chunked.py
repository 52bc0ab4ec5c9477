"""Chunked attention (Llama 4): the text is cut at every multiple of ``chunk``, and a token reads its own
chunk alone.

Unlike a window it forgets all at once: the first token of a chunk sees only itself. Layers that read
everything stand between the chunked ones and carry what is older. Time grows with n c, memory stops growing
at c tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.attention import gqa
from cutaway.attention.parts.cost import Cost
from cutaway.attention.parts.visibility import Causal, Chunk, Visibility
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.attention.parts.state import Ring


COST = Cost(
    prefill="n min(n, chunk) h (k + v) / 2",
    memory="n (h + g) (k + v)",
    decode="min(n, chunk) h (k + v)",
    state="min(n, chunk) g (k + v)",
)
USUAL = {"chunk": 8192}


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """Grouped-query heads within chunks of so many positions."""

    chunk: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk < 1:
            raise UserError(f"attention: a chunk of {self.chunk} tokens holds nothing, it must be 1 or more")

    @property
    def visibility(self) -> Visibility:
        return Causal() & Chunk(self.chunk)

    def state(self) -> Ring:
        from cutaway.attention.parts.state import Ring

        return Ring(self.chunk)
