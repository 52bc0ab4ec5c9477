"""The module of ``attention/mla.py``, which has the equation and the config."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cutaway.attention.backends.choice import Choice, attend
from cutaway.attention.backends.inputs import AttentionInputs, Chosen
from cutaway.attention.common.mixer import LayerState
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.common.visibility import Positions
from cutaway.attention.mla import Config
from cutaway.attention.state.entries import Entries, append
from cutaway.hooks import tap, tell, watched
from cutaway.position.rope import Rotation, rotate
from cutaway.shapes import Bool, Float


class Where(NamedTuple):
    """Which keys each query reads, as ``AttentionInputs`` has it."""

    query: Positions
    key: Positions
    in_order: bool = False
    chosen: Bool[Tensor, "b t s"] | Chosen | None = None


class LatentAttention(nn.Module):
    """Both forms of the equation; ``attend`` takes the cheaper one.

    Taps ``latent`` [b 1 s c+kr]; ``q`` [b h t k], ``k`` [b h s k] and ``v`` [b h s v] of the expanded form,
    which a listener to them selects; ``z`` [b h t v]; where it is gated, ``gate`` [b t h] and
    ``out_input`` [b h t v]; the backend taps ``scores`` and ``pattern``.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        heads, size = config.heads, config.key_size + config.rope_dim
        asked = width if config.query_latent is None else config.query_latent
        self.query_down = (
            nn.Identity() if config.query_latent is None else nn.Linear(width, asked, bias=False)
        )
        self.query_norm = _norm(config, config.query_latent)
        self.query = nn.Linear(asked, heads * size, bias=False)
        self.down = nn.Linear(width, config.latent + config.rope_dim, bias=False)
        self.latent_norm = _norm(config, config.latent)
        self.key_up = nn.Linear(config.latent, heads * config.key_size, bias=False)
        self.value_up = nn.Linear(config.latent, heads * config.values, bias=False)
        self.out = nn.Linear(heads * config.values, width, bias=False)
        self.gate = nn.Linear(width, heads, bias=False) if config.gated else None
        self.grows = config.position is not None and config.position.grows
        self.scale = size**-0.5 if config.scale is None else config.scale

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: LayerState | None,
    ) -> Float[Tensor, "b t d"]:
        query_latent = self.query_norm(self.query_down(x))
        q = self._rotated(cut(self.query(query_latent), self.config.heads), rotation)
        c, kr = self.down(x).split((self.config.latent, self.config.rope_dim), dim=-1)
        entries: Entries = {"latent": torch.cat((self.latent_norm(c), kr), dim=-1)[:, None], **self.more(x)}
        key_positions, key_rotation = positions, rotation
        if not self.grows:
            entries, key_rotation = self.rotated(entries, rotation), None
        if state is not None:
            entries, key_pos = append(state, entries, positions.pos)
            key_positions, key_rotation = Positions(key_pos), key_rotation and key_rotation.at(key_pos)
        entries = self.rotated(entries, key_rotation)
        where = Where(positions, key_positions, in_order)
        where = where._replace(chosen=self.chosen(x, query_latent, entries, where, rotation))
        z = tap("z", self.attend(q, entries, where))
        if self.gate is not None:
            gate = tap("gate", self.gate(x).sigmoid())
            z = tap("out_input", z * gate.transpose(1, 2)[..., None])
        return self.out(join(z))

    def more(self, x: Float[Tensor, "b t d"]) -> Entries:
        """Further entries that the cache keeps of a token."""
        return {}

    def rotated(self, entries: Entries, rotation: Rotation | None) -> Entries:
        """The entries, rotated by their tokens' positions."""
        return {"latent": self._rotated(entries["latent"], rotation)}

    def chosen(
        self,
        x: Float[Tensor, "b t d"],
        query_latent: Float[Tensor, "b t n"],
        entries: Entries,
        where: Where,
        rotation: Rotation | None,
    ) -> Bool[Tensor, "b t s"] | Chosen | None:
        """The visible keys that a query reads: all of them."""
        return None

    def attend(self, q: Float[Tensor, "b h t k"], entries: Entries, where: Where) -> Float[Tensor, "b h t v"]:
        """z, by the cheaper of the two forms. Tells ``form``, a ``Choice``."""
        latent = tap("latent", entries["latent"])
        queries, keys = q.shape[2], latent.shape[2]
        absorbs = self.config.absorbs(queries, keys) and not watched("q", "k", "v")
        tell("form", lambda: _form(absorbs, queries, keys))
        return (self.absorbed if absorbs else self.expanded)(q, latent, where)

    def expanded(
        self, q: Float[Tensor, "b h t k"], latent: Float[Tensor, "b 1 s c"], where: Where
    ) -> Float[Tensor, "b h t v"]:
        """Compute the keys and values of every head, then attend to them."""
        c, kr = latent[:, 0].split((self.config.latent, self.config.rope_dim), dim=-1)
        heads = self.config.heads
        k = torch.cat((cut(self.key_up(c), heads), kr[:, None].expand(-1, heads, -1, -1)), dim=-1)
        v = cut(self.value_up(c), heads)
        return self._softmax(tap("q", q), tap("k", k), tap("v", v), where)

    def absorbed(
        self, q: Float[Tensor, "b h t k"], latent: Float[Tensor, "b 1 s c"], where: Where
    ) -> Float[Tensor, "b h t v"]:
        """Move W_uk to the query: all heads read one key head, whose values are a part of it."""
        size = self.config.latent
        plain, rotated = q.split((self.config.key_size, self.config.rope_dim), dim=-1)
        up = self.key_up.weight.unflatten(0, (self.config.heads, -1))
        q = torch.cat((plain @ up, rotated), dim=-1)
        read = self._softmax(q, latent, latent[..., :size], where)
        return read @ self.value_up.weight.unflatten(0, (self.config.heads, -1)).transpose(-2, -1)

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor, where: Where) -> Tensor:
        rule = self.config.visibility
        return attend(AttentionInputs(q, k, v, visibility=rule, scale=self.scale, **where._asdict()))

    def _rotated(self, x: Float[Tensor, "b h t k"], rotation: Rotation | None) -> Float[Tensor, "b h t k"]:
        """Rotates the last dimensions of a head, which are those of kr."""
        if rotation is None:
            return x
        plain, last = x.split((x.shape[-1] - self.config.rope_dim, self.config.rope_dim), dim=-1)
        return torch.cat((plain, rotate(last, rotation)), dim=-1)


def _norm(config: Config, size: int | None) -> nn.Module:
    """The norm of a latent of this size, if there is one and it is normed."""
    return nn.Identity() if size is None or config.norm is None else config.norm.build(size)


def _form(absorbs: bool, queries: int, keys: int) -> Choice:
    """The form for so many queries and keys, and why not the other."""
    counted = f"{queries:,} against {keys:,} keys"
    if absorbs:
        refused = {"expanded": "it would compute keys and values of every head from every latent first"}
        return Choice("absorbed", f"{counted}: moving the queries to the latents multiplies less", refused)
    refused = {"absorbed": "every query would meet latents, which are longer than keys"}
    return Choice("expanded", f"{counted}: computing keys and values first multiplies less", refused)
