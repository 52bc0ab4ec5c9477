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

import torch
from torch import Tensor, nn

from cutaway.attention import mla
from cutaway.attention.backends import MANY
from cutaway.attention.backends.inputs import Chosen
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.softmax import cut
from cutaway.attention.common.visibility import Positions, mask
from cutaway.attention.state import Entries
from cutaway.bounds import Count, Natural
from cutaway.errors import UserError
from cutaway.hooks import tap, watched
from cutaway.layers.config import Norm
from cutaway.position.rope import Rotation, rotate
from cutaway.shapes import Bool, Float

BETWEEN = "n² index_heads index_size / 2 + min(n, top_k) (n - min(n, top_k) / 2) h (k + rope_dim + v)"
COST = Cost(
    prefill=f"{BETWEEN} + n latent h (k + v)",
    memory="2 n h (k + rope_dim + v) + n (index_heads + 1) index_size",
    decode="n index_heads index_size + min(n, top_k) h (2 latent + rope_dim) + h latent (k + v)",
    state="n (latent + rope_dim + index_size)",
    between=BETWEEN,
)
USUAL = {"latent": "4 k", "rope_dim": "k / 2", "index_heads": "h / 2", "index_size": "k", "top_k": 2048}


@dataclass(frozen=True, kw_only=True)
class Config(mla.Config):
    """``index_heads`` heads of ``index_size`` choose ``top_k`` keys for all heads of latent attention."""

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

    def build(self, width: int) -> SparseLatentAttention:
        return SparseLatentAttention(self, width)


class SparseLatentAttention(mla.LatentAttention):
    """Latent attention of the keys that the indexer chooses.

    Taps ``index`` [b t s], the indexer's scores before the mask, and ``chosen`` [b t s], the keys each query
    reads, besides. Many queries without a listener choose a block at a time.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.top_k, self.index_heads, self.interleaved = config.top_k, config.index_heads, config.interleaved
        self.lends: int | None = None  # its layer's number, where a later layer reads its choice
        self.borrows = config.index_layer
        if self.borrows is not None:
            return
        asked = width if config.query_latent is None else config.query_latent
        self.index_query = nn.Linear(asked, config.index_heads * config.index_size, bias=False)
        self.index_key = nn.Linear(width, config.index_size, bias=False)
        self.index_norm = Norm("layer", 1e-6).build(config.index_size)
        self.index_weight = nn.Linear(width, config.index_heads, bias=False)

    def more(self, x: Float[Tensor, "b t d"]) -> Entries:
        return {} if self.borrows is not None else {"index": self.index_norm(self.index_key(x))[:, None]}

    def rotated(self, entries: Entries, rotation: Rotation | None) -> Entries:
        own = {} if self.borrows is not None else {"index": self._rotated_index(entries["index"], rotation)}
        return {**super().rotated(entries, rotation), **own}

    def _rotated_index(
        self, x: Float[Tensor, "b h t k"], rotation: Rotation | None
    ) -> Float[Tensor, "b h t k"]:
        """The first dimensions of each index head, rotated."""
        if rotation is None:
            return x
        return rotate(x, rotation if self.interleaved else rotation._replace(interleaved=False))

    @torch.no_grad()
    def chosen(
        self,
        x: Float[Tensor, "b t d"],
        query_latent: Float[Tensor, "b t n"],
        entries: Entries,
        where: mla.Where,
        rotation: Rotation | None,
    ) -> Bool[Tensor, "b t s"] | Chosen:
        query, key = where.query, where.key
        if self.borrows is not None:
            assert query.shared is not None
            found = query.shared[self.borrows]
            if isinstance(found, Tensor):
                return tap("chosen", found)
            return found(slice(None)) if watched("index", "chosen", "scores", "pattern") else found
        q = self._rotated_index(cut(self.index_query(query_latent), self.index_heads), rotation)
        w = (self.index_weight(x) * self.index_heads**-0.5).transpose(1, 2)

        @torch.no_grad()
        def choose(rows: slice) -> Bool[Tensor, "b t s"]:
            fits = (q[:, :, rows] @ entries["index"].transpose(-2, -1) * q.shape[-1] ** -0.5).relu()
            index = tap("index", (w[:, :, rows, None] * fits).sum(1))
            documents = None if query.documents is None else query.documents[:, rows]
            visible = mask(self.config.visibility, Positions(query.pos[:, rows], documents), key)
            return tap("chosen", visible & best(index.masked_fill(~visible, -torch.inf), self.top_k))

        watches = watched("index", "chosen", "scores", "pattern")
        found = choose if q.shape[2] >= MANY and not watches else choose(slice(None))
        if self.lends is not None and query.shared is not None:
            query.shared[self.lends] = found
        return found

    def attend(
        self, q: Float[Tensor, "b h t k"], entries: Entries, where: mla.Where
    ) -> Float[Tensor, "b h t v"]:
        """A single query reads only the latents it chose; many queries have a mask."""
        key, chosen = where.key, where.chosen
        alone = q.shape[2] == 1 and key.pos.shape[1] > self.top_k and not watched("scores", "pattern")
        if not isinstance(chosen, Tensor) or not alone:
            return super().attend(q, entries, where)
        kept = chosen[:, 0].long().topk(self.top_k, dim=-1).indices
        latent = entries["latent"]
        latent = latent.gather(2, kept[:, None, :, None].expand(-1, -1, -1, latent.shape[-1]))
        documents = None if key.documents is None else key.documents.gather(1, kept)
        there = Positions(key.pos.gather(1, kept), documents)
        return super().attend(q, {"latent": latent}, mla.Where(where.query, there))


def best(scores: Float[Tensor, "b t s"], count: int) -> Bool[Tensor, "b t s"]:
    """True at the ``count`` highest scores of each row; of equal ones at the earliest."""
    if count >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    least = scores.topk(count, dim=-1).values[..., -1:]
    above, equal = scores > least, scores == least
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
