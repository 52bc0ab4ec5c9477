"""The module of ``attention/dsa.py``, which has the equation and the config."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.backends.choice import MANY
from cutaway.attention.backends.inputs import Chosen
from cutaway.attention.common.softmax import cut
from cutaway.attention.common.visibility import Positions, mask
from cutaway.attention.dsa import INDEX_NORM, Config
from cutaway.attention.modules import mla
from cutaway.attention.state.entries import Entries
from cutaway.hooks import tap, watched
from cutaway.position.rope import Rotation, rotate
from cutaway.shapes import Bool, Float


class SparseLatentAttention(mla.LatentAttention):
    """Latent attention of the keys that the indexer chooses.

    Also taps ``index`` [b t s], the indexer's scores before the mask, and ``chosen`` [b t s], the keys each
    query reads. Many queries without a listener choose a block at a time.
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
        self.index_norm = INDEX_NORM.build(config.index_size)
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
