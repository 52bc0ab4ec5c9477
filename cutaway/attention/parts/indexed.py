"""Latent attention that reads what an indexer chose; ``attention/dsa.py`` tells the mechanism."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.backends import MANY
from cutaway.attention.dsa import INDEX_NORM, Config
from cutaway.attention.parts.latent import LatentAttention
from cutaway.attention.parts.score import Chosen
from cutaway.attention.parts.softmax import cut
from cutaway.attention.parts.state import Entries
from cutaway.attention.parts.visibility import Places, mask
from cutaway.hooks import tap, watched
from cutaway.position.rope import Rotation, rotate
from cutaway.shapes import Bool, Float


class IndexedAttention(LatentAttention):
    """Taps ``index`` [b t s], the indexer's scores before anything is hidden, and ``chosen`` [b t s], who
    reads whom, besides what latent attention taps. Many queries that nobody watches choose a few at a time.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.top_k, self.index_heads = config.top_k, config.index_heads
        asked = width if config.query_latent is None else config.query_latent
        self.index_query = nn.Linear(asked, config.index_heads * config.index_size, bias=False)
        self.index_key = nn.Linear(width, config.index_size, bias=False)
        self.index_norm = INDEX_NORM.build(config.index_size)
        self.index_share = nn.Linear(width, config.index_heads, bias=False)

    def more(self, x: Float[Tensor, "b t d"]) -> Entries:
        return {"index": self.index_norm(self.index_key(x))[:, None]}

    def turned(self, entries: Entries, rotation: Rotation | None) -> Entries:
        return {**super().turned(entries, rotation), "index": _half_split(entries["index"], rotation)}

    @torch.no_grad()
    def chosen(
        self,
        x: Float[Tensor, "b t d"],
        asked: Float[Tensor, "b t n"],
        entries: Entries,
        query: Places,
        key: Places,
        rotation: Rotation | None,
    ) -> Bool[Tensor, "b t s"] | Chosen:
        q = _half_split(cut(self.index_query(asked), self.index_heads), rotation)
        share = (self.index_share(x) * self.index_heads**-0.5).transpose(1, 2)

        @torch.no_grad()
        def choose(rows: slice) -> Bool[Tensor, "b t s"]:
            fits = (q[:, :, rows] @ entries["index"].transpose(-2, -1) * q.shape[-1] ** -0.5).relu()
            index = tap("index", (share[:, :, rows, None] * fits).sum(1))
            asks = Places(query.pos[:, rows], None if query.documents is None else query.documents[:, rows])
            visible = mask(self.config.visibility, asks, key)
            return tap("chosen", visible & best(index.masked_fill(~visible, -torch.inf), self.top_k))

        watches = watched("index", "chosen", "scores", "pattern")
        return choose if q.shape[2] >= MANY and not watches else choose(slice(None))

    def mixed(
        self,
        q: Float[Tensor, "b h t k"],
        entries: Entries,
        query: Places,
        key: Places,
        in_order: bool,
        chosen: Bool[Tensor, "b t s"] | Chosen | None,
    ) -> Float[Tensor, "b h t v"]:
        """A single query reads the latents it chose and touches no others; many share a mask."""
        alone = q.shape[2] == 1 and key.pos.shape[1] > self.top_k and not watched("scores", "pattern")
        if not isinstance(chosen, Tensor) or not alone:
            return super().mixed(q, entries, query, key, in_order, chosen)
        kept = chosen[:, 0].long().topk(self.top_k, dim=-1).indices
        latent = entries["latent"]
        picked = latent.gather(2, kept[:, None, :, None].expand(-1, -1, -1, latent.shape[-1]))
        documents = None if key.documents is None else key.documents.gather(1, kept)
        there = Places(key.pos.gather(1, kept), documents)
        return super().mixed(q, {"latent": picked}, query, there, False, None)


def best(scores: Float[Tensor, "b t s"], count: int) -> Bool[Tensor, "b t s"]:
    """True at the ``count`` highest scores of each row; of equal ones at those that come first."""
    if count >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    least = scores.topk(count, dim=-1).values[..., -1:]
    above, equal = scores > least, scores == least
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def _half_split(x: Float[Tensor, "b h t k"], rotation: Rotation | None) -> Float[Tensor, "b h t k"]:
    """Turns the first dimensions of each index head."""
    return x if rotation is None else rotate(x, rotation._replace(interleaved=False))
