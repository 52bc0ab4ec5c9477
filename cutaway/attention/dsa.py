"""DeepSeek sparse attention (DeepSeek-V3.2, 2512.02556): a light indexer picks the keys that latent attention
then reads.

    I[t s] = sum_h w[t h] relu(q_h[t] . k[s] / sqrt(e)) / sqrt(n)        n index heads of size e over one key

Token t reads the ``top_k`` keys s with the highest I[t s] among those it may see; of equal ones, those that
came first. Scoring is still n^2, but with few small heads and no values; reading is n k. The indexer turns
its heads half-split where mla turns interleaved pairs. Its choice has no gradient: it is trained to predict
where full attention looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.attention import mla
from cutaway.attention.parts.cost import Cost
from cutaway.errors import UserError
from cutaway.layers.config import Norm

if TYPE_CHECKING:
    from torch import nn

INDEX_NORM = Norm("layer", 1e-6)


COST = Cost(
    prefill="n² index_heads index_size / 2 + n min(n, top_k) h (k + turned_size + v) + n latent h (k + v)",
    memory="2 n h (k + turned_size + v) + n (index_heads + 1) index_size",
    decode="n index_heads index_size + min(n, top_k) h (2 latent + turned_size) + h latent (k + v)",
    state="n (latent + turned_size + index_size)",
)
USUAL = {"latent": "4 k", "turned_size": "k / 2", "index_heads": "h / 2", "index_size": "k", "top_k": 2048}


@dataclass(frozen=True, kw_only=True)
class Config(mla.Config):
    """``index_heads`` heads of ``index_size`` choose ``top_k`` keys for all heads of latent attention."""

    index_heads: int
    index_size: int
    top_k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1:
            raise UserError(f"attention: choosing {self.top_k} keys reads nothing, top_k must be 1 or more")
        if self.position is not None and self.position.size > self.index_size:
            raise UserError(
                f"attention: {self.position.size} dimensions do not fit index heads of {self.index_size}"
            )

    @property
    def entries(self) -> dict[str, tuple[int, int]]:
        """What is remembered of a token: its latent, and the indexer's key."""
        return {**super().entries, "index": (1, self.index_size)}

    def build(self, width: int) -> nn.Module:
        from cutaway.attention.parts.indexed import IndexedAttention

        return IndexedAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        asked = width if self.query_latent is None else self.query_latent
        own = {
            "index_query.weight": (self.index_heads * self.index_size, asked),
            "index_key.weight": (self.index_size, width),
            "index_share.weight": (self.index_heads, width),
        }
        own |= {f"index_norm.{name}": shape for name, shape in INDEX_NORM.weights(self.index_size).items()}
        return super().weights(width) | own
