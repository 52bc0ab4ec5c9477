"""DeepSeek sparse attention (DeepSeek-V3.2, 2512.02556): an indexer chooses latent attention's keys.

    I[t s] = sum_h w[t h] relu(q_h[t] . k[s] / sqrt(e)) / sqrt(n)        n index heads of size e over one key

Token t attends to the ``top_k`` keys s with the highest I[t s] among those it sees; of ties, the earlier.
Scoring is still n^2, but with few small heads and no values; attention is n k. The indexer rotates its heads
half-split where mla rotates interleaved pairs, unless it is ``interleaved`` too (GLM-5). Its choice has no
gradient: it is trained to predict where full attention looks. Layers next to each other choose alike, so that
one may read the choice of an earlier one, its ``index_layer``, and have no indexer (IndexCache, 2603.12201).
"""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.attention import mla
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import Shapes, linear, under
from cutaway.bounds import Count, Natural
from cutaway.errors import UserError
from cutaway.layers.config import Norm

BETWEEN = "n² index_heads index_size / 2 + min(n, top_k) (n - min(n, top_k) / 2) h (k + rope_dim + v)"
COST = Cost(
    prefill=f"{BETWEEN} + n latent h (k + v)",
    memory="2 n h (k + rope_dim + v) + n (index_heads + 1) index_size",
    decode="n index_heads index_size + min(n, top_k) h (2 latent + rope_dim) + h latent (k + v)",
    state="n (latent + rope_dim + index_size)",
    between=BETWEEN,
)
INDEX_NORM = Norm("layer", 1e-6)
USUAL = {"latent": "4 k", "rope_dim": "k / 2", "index_heads": "h / 2", "index_size": "k", "top_k": 2048}


@dataclass(frozen=True, kw_only=True)
class Config(mla.Config):
    """``index_heads`` heads of ``index_size`` choose ``top_k`` keys for all heads of latent attention."""

    module = "cutaway.attention.modules.dsa:SparseLatentAttention"

    index_heads: Count
    index_size: Count
    top_k: Count
    interleaved: bool = False
    index_layer: Natural | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position is not None and self.position.size > self.index_size:
            raise UserError(
                f"attention: {self.position.size} dimensions do not fit index heads of {self.index_size}"
            )

    @property
    def entries(self) -> dict[str, tuple[int, int]]:
        """What the cache keeps of a token: its latent, and the indexer's key."""
        own = {"index": (1, self.index_size)} if self.index_layer is None else {}
        return {**super().entries, **own}

    def weights(self, width: int) -> Shapes:
        shapes = super().weights(width)
        if self.index_layer is not None:
            return shapes
        asked = width if self.query_latent is None else self.query_latent
        shapes |= linear("index_query", self.index_heads * self.index_size, asked)
        shapes |= linear("index_key", self.index_size, width) | linear(
            "index_weight", self.index_heads, width
        )
        return shapes | under("index_norm", INDEX_NORM.weights(self.index_size))
