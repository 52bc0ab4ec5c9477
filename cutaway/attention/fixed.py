"""Fixed attention (Sparse Transformer, 1904.10509): its own chunk, and the end of every earlier one.

Those few learn to summarize their chunk for all later tokens. With chunks near sqrt(n) a token reads about
2 sqrt(n) others.
"""

from dataclasses import dataclass

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.visibility import Causal, Chunk, Columns, Visibility
from cutaway.bounds import Count
from cutaway.errors import UserError

COST = Cost(
    prefill="(n min(n, chunk) + max(n - chunk, 0) n summary / chunk) h (k + v) / 2",
    memory="n (h + g) (k + v)",
    decode="(min(n, chunk) + n summary / chunk) h (k + v)",
    state="n g (k + v)",
)
USUAL = {"chunk": 128, "summary": 8}


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """Chunks of ``chunk`` tokens; every later token sees the last ``summary`` tokens of each chunk."""

    chunk: Count
    summary: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.summary > self.chunk:
            raise UserError(f"attention.summary is {self.summary}; it must be at most chunk ({self.chunk})")

    @property
    def visibility(self) -> Visibility:
        return Causal() & (Chunk(self.chunk) | Columns(self.chunk, self.summary))
