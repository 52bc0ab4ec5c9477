"""Chunked attention (Llama 4): the text is cut into chunks, and a token attends to its own alone.

A chunk ends at every multiple of ``chunk``.

Unlike a window it forgets all at once: the first token of a chunk sees only itself. Layers of full attention
between the chunked ones carry what is older. Time grows with n c, and the cache stops growing at c tokens.
"""

from dataclasses import dataclass

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.visibility import Causal, Chunk, Visibility
from cutaway.bounds import Count

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

    chunk: Count

    @property
    def visibility(self) -> Visibility:
        return Causal() & Chunk(self.chunk)

    @property
    def held(self) -> tuple[int, int]:
        return self.chunk, 0
