"""Attention over latents, expanded or absorbed; ``attention/mla.py`` tells the mechanism."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.backends import Choice, attend
from cutaway.attention.mla import Config
from cutaway.attention.parts.mixer import Memory
from cutaway.attention.parts.score import Chosen, Problem
from cutaway.attention.parts.softmax import cut, join
from cutaway.attention.parts.state import Entries, append
from cutaway.attention.parts.visibility import Places
from cutaway.hooks import tap, tell, watched
from cutaway.position.rope import Rotation, rotate
from cutaway.shapes import Bool, Float


class LatentAttention(nn.Module):
    """Taps ``latent`` [b 1 s c+kr]; ``q`` [b h t k], ``k`` [b h s k] and ``v`` [b h s v] as read out of it,
    which whoever listens to makes it do; ``mixed`` [b h t v]; the path taps ``scores`` and ``pattern``.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        heads, size = config.heads, config.key_size + config.turned_size
        asked = width if config.query_latent is None else config.query_latent
        self.query_down = (
            nn.Identity() if config.query_latent is None else nn.Linear(width, asked, bias=False)
        )
        self.query_norm = nn.Identity() if config.query_latent is None else config.norm.build(asked)
        self.query = nn.Linear(asked, heads * size, bias=False)
        self.down = nn.Linear(width, config.latent + config.turned_size, bias=False)
        self.latent_norm = config.norm.build(config.latent)
        self.key_up = nn.Linear(config.latent, heads * config.key_size, bias=False)
        self.value_up = nn.Linear(config.latent, heads * config.values, bias=False)
        self.out = nn.Linear(heads * config.values, width, bias=False)
        self.grows = config.position is not None and config.position.grows
        self.scale = size**-0.5 if config.scale is None else config.scale

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        places: Places,
        rotation: Rotation | None,
        in_order: bool,
        state: Memory | None,
    ) -> Float[Tensor, "b t d"]:
        asked = self.query_norm(self.query_down(x))
        q = self._turned(cut(self.query(asked), self.config.heads), rotation)
        c, kr = self.down(x).split((self.config.latent, self.config.turned_size), dim=-1)
        entries: Entries = {"latent": torch.cat((self.latent_norm(c), kr), dim=-1)[:, None], **self.more(x)}
        key_places, key_rotation = places, rotation
        if not self.grows:
            entries, key_rotation = self.turned(entries, rotation), None
        if state is not None:
            entries, key_pos = append(state, entries, places.pos)
            key_places, key_rotation = Places(key_pos), key_rotation and key_rotation.at(key_pos)
        entries = self.turned(entries, key_rotation)
        chosen = self.chosen(x, asked, entries, places, key_places, rotation)
        return self.out(join(tap("mixed", self.mixed(q, entries, places, key_places, in_order, chosen))))

    def more(self, x: Float[Tensor, "b t d"]) -> Entries:
        """What else is remembered of a token."""
        return {}

    def turned(self, entries: Entries, rotation: Rotation | None) -> Entries:
        """The entries, turned by where their tokens stand."""
        return {"latent": self._turned(entries["latent"], rotation)}

    def chosen(
        self,
        x: Float[Tensor, "b t d"],
        asked: Float[Tensor, "b t n"],
        entries: Entries,
        query: Places,
        key: Places,
        rotation: Rotation | None,
    ) -> Bool[Tensor, "b t s"] | Chosen | None:
        """Which of the keys that a query may see it reads: all."""
        return None

    def mixed(
        self,
        q: Float[Tensor, "b h t k"],
        entries: Entries,
        query: Places,
        key: Places,
        in_order: bool,
        chosen: Bool[Tensor, "b t s"] | Chosen | None,
    ) -> Float[Tensor, "b h t v"]:
        """What each head gathers, by the cheaper of the two ways. Tells ``form``, a ``Choice``."""
        latent = tap("latent", entries["latent"])
        queries, keys = q.shape[2], latent.shape[2]
        absorbs = self.config.absorbs(queries, keys) and not watched("q", "k", "v")
        tell("form", lambda: _form(absorbs, queries, keys))
        way = self.absorbed if absorbs else self.expanded
        return way(q, latent, query, key, in_order, chosen)

    def expanded(
        self,
        q: Float[Tensor, "b h t k"],
        latent: Float[Tensor, "b 1 s c"],
        query: Places,
        key: Places,
        in_order: bool = False,
        chosen: Bool[Tensor, "b t s"] | Chosen | None = None,
    ) -> Float[Tensor, "b h t v"]:
        """Keys and values of every head are read out, then attended to."""
        c, kr = latent[:, 0].split((self.config.latent, self.config.turned_size), dim=-1)
        heads = self.config.heads
        k = torch.cat((cut(self.key_up(c), heads), kr[:, None].expand(-1, heads, -1, -1)), dim=-1)
        v = cut(self.value_up(c), heads)
        q, k, v = tap("q", q), tap("k", k), tap("v", v)
        return self._attend(q, k, v, query, key, in_order, chosen)

    def absorbed(
        self,
        q: Float[Tensor, "b h t k"],
        latent: Float[Tensor, "b 1 s c"],
        query: Places,
        key: Places,
        in_order: bool = False,
        chosen: Bool[Tensor, "b t s"] | Chosen | None = None,
    ) -> Float[Tensor, "b h t v"]:
        """The query goes to where the latents are: all heads read one key head, whose values are a
        part of it.
        """
        size = self.config.latent
        plain, turned = q.split((self.config.key_size, self.config.turned_size), dim=-1)
        up = self.key_up.weight.unflatten(0, (self.config.heads, -1))
        q = torch.cat((plain @ up, turned), dim=-1)
        read = self._attend(q, latent, latent[..., :size], query, key, in_order, chosen)
        return read @ self.value_up.weight.unflatten(0, (self.config.heads, -1)).transpose(-2, -1)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        query: Places,
        key: Places,
        in_order: bool,
        chosen: Tensor | Chosen | None,
    ) -> Tensor:
        rule = self.config.visibility
        return attend(
            Problem(
                q=q,
                k=k,
                v=v,
                query=query,
                key=key,
                visibility=rule,
                scale=self.scale,
                in_order=in_order,
                chosen=chosen,
            )
        )

    def _turned(self, x: Float[Tensor, "b h t k"], rotation: Rotation | None) -> Float[Tensor, "b h t k"]:
        """Turns the last dimensions of a head, which are those of kr."""
        if rotation is None:
            return x
        plain, last = x.split((x.shape[-1] - self.config.turned_size, self.config.turned_size), dim=-1)
        return torch.cat((plain, rotate(last, rotation)), dim=-1)


def _form(absorbs: bool, queries: int, keys: int) -> Choice:
    """Which of the two ways these queries take, and why not the other."""
    told = f"{queries:,} against {keys:,} keys"
    if absorbs:
        refused = {"expanded": "it would read keys and values of every head out of every latent first"}
        return Choice("absorbed", f"{told}: moving the queries to the latents multiplies less", refused)
    refused = {"absorbed": "every query would meet latents, which are longer than keys"}
    return Choice("expanded", f"{told}: reading keys and values out first multiplies less", refused)
