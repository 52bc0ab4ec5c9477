"""Multi-head latent attention (DeepSeek-V2, 2405.04434): keys and values come out of a small latent.

    c = RMS(W_c x)    kr = RoPE(W_kr x)        the cache holds c and kr, for all heads together
    k_h = [W_uk,h c ; kr]    v_h = W_uv,h c    q_h = [W_q,h x ; RoPE(W_qr,h x)]

The cache is that of a single head of size c + kr, and yet every head has keys and values of its own. Position
is in kr alone, because a rotated key could not be taken apart into W_uk and c. That matters because
q . (W_uk c) = (W_uk' q) . c: a decoder moves W_uk to the query's side and attends to the latents themselves,
the same for all heads ("absorbed"). Over a long prompt, computing keys and values first ("expanded") costs
less. Both are this equation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.attention.backends import Choice, attend
from cutaway.attention.backends.inputs import AttentionInputs, Chosen
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import LayerState, weight_shapes
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.common.visibility import Causal, Positions, Visibility
from cutaway.attention.state import Entries, Full, append
from cutaway.bounds import Bounded, Count, Positive
from cutaway.errors import UserError
from cutaway.hooks import tap, tell, watched
from cutaway.layers.config import Norm
from cutaway.position import rope
from cutaway.position.rope import Rotation, rotate
from cutaway.shapes import Bool, Float

COST = Cost(
    prefill="n² h (k + rope_dim + v) / 2 + n latent h (k + v)",
    memory="2 n h (k + rope_dim + v)",
    decode="n h (2 latent + rope_dim) + h latent (k + v)",
    state="n (latent + rope_dim)",
    between="n² h (k + rope_dim + v) / 2",
)
USUAL = {"latent": "4 k", "rope_dim": "k / 2"}


@dataclass(frozen=True, kw_only=True)
class Config(Bounded):
    """``latent`` is the size of c, ``rope_dim`` of kr, ``key_size`` and ``value_size`` of a head's.

    ``query_latent``: queries come out of a normed latent of this size too, straight from x when None.
    ``scale`` is 1/sqrt(key_size + rope_dim) when None; without ``norm`` c is not normed. Where it
    is ``gated`` each head's output is multiplied by sigmoid(W_g x), one number (Ling 3).
    """

    reads: ClassVar[Literal["past", "all", "memory"]] = "past"

    heads: Count
    key_size: Count
    rope_dim: Count
    latent: Count
    value_size: Count | None = None
    query_latent: Count | None = None
    position: rope.Config | None = field(default=None, metadata={"variants": "cutaway.position"})
    norm: Norm | None = Norm(eps=1e-6)
    scale: Positive | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position is not None and self.position.size > self.rope_dim:
            raise UserError(
                f"attention: {self.position.size} dimensions cannot be rotated, kr has {self.rope_dim}"
            )

    @property
    def values(self) -> int:
        """The size of a value."""
        return self.key_size if self.value_size is None else self.value_size

    @property
    def visibility(self) -> Visibility:
        return Causal()

    @property
    def entries(self) -> dict[str, tuple[int, int]]:
        """What the cache keeps of a token: one head, c and kr side by side."""
        return {"latent": (1, self.latent + self.rope_dim)}

    def absorbs(self, queries: int, keys: int) -> bool:
        """Whether attending to the latents multiplies less than computing keys and values first."""
        sizes, latent = self.key_size + self.values, self.latent
        expanded = keys * latent * sizes + queries * keys * (sizes + self.rope_dim)
        absorbed = queries * latent * sizes + queries * keys * (2 * latent + self.rope_dim)
        return absorbed < expanded

    def build(self, width: int) -> LatentAttention:
        return LatentAttention(self, width)

    weights = weight_shapes

    def state(self) -> LayerState:
        return Full()

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one token in this layer, for numbers of ``entry`` bytes."""
        return sum(heads * size for heads, size in self.entries.values()) * entry


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
        """Which of its visible keys a query reads: all of them."""
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
