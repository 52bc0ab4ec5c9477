"""Multi-head latent attention (DeepSeek-V2, 2405.04434): keys and values come out of a small latent.

    c = RMS(W_c x)    kr = RoPE(W_kr x)        the cache holds c and kr, for all heads together
    k_h = [W_uk,h c ; kr]    v_h = W_uv,h c    q_h = [W_q,h x ; RoPE(W_qr,h x)]

The cache is as small as that of one head of size c + kr, and yet every head has its own keys and values.

A score's part without position is q . (W_uk c) = (W_uk' q) . c. A decoder can therefore apply W_uk to the
query and attend to the latents themselves, which all heads share ("absorbed"). This works only if the key is
W_uk c and nothing else, so the rotation is left to kr. Over a long prompt it is cheaper to compute keys and
values first ("expanded"). Both orders compute the same equation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import LayerState, Shapes, linear, under
from cutaway.attention.common.visibility import Causal, Visibility
from cutaway.bounds import Count, Positive
from cutaway.building import Buildable
from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.position import rope

COST = Cost(
    prefill="n² h (k + rope_dim + v) / 2 + n latent h (k + v)",
    memory="2 n h (k + rope_dim + v)",
    decode="n h (2 latent + rope_dim) + h latent (k + v)",
    state="n (latent + rope_dim)",
    between="n² h (k + rope_dim + v) / 2",
)
USUAL = {"latent": "4 k", "rope_dim": "k / 2"}


@dataclass(frozen=True, kw_only=True)
class Config(Buildable):
    """``latent`` is the size of c, ``rope_dim`` of kr, ``key_size`` and ``value_size`` of a head's.

    ``query_latent``: queries come out of a normed latent of this size too, straight from x when None.
    ``scale`` is 1/sqrt(key_size + rope_dim) when None; without ``norm`` c is not normed. Where it
    is ``gated`` each head's output is multiplied by sigmoid(W_g x), one number (Ling 3).
    """

    module = "cutaway.attention.modules.mla:LatentAttention"
    reads: ClassVar[Literal["past", "all", "memory"]] = "past"
    maps: ClassVar[int] = 1

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

    def weights(self, width: int) -> Shapes:
        """The shape of each weight by its name."""
        heads, asked = self.heads, width if self.query_latent is None else self.query_latent
        shapes = linear("query", heads * (self.key_size + self.rope_dim), asked)
        shapes |= linear("down", self.latent + self.rope_dim, width)
        shapes |= linear("key_up", heads * self.key_size, self.latent)
        shapes |= linear("value_up", heads * self.values, self.latent) | linear(
            "out", width, heads * self.values
        )
        if self.query_latent is not None:
            shapes |= linear("query_down", asked, width)
        if self.gated:
            shapes |= linear("gate", heads, width)
        for name, size in {"query_norm": self.query_latent, "latent_norm": self.latent}.items():
            if size is not None and self.norm is not None:
                shapes |= under(name, self.norm.weights(size))
        return shapes

    def state(self) -> LayerState:
        """An empty cache: [c ; kr] of each token, float [latent + rope_dim]."""
        from cutaway.attention.state.caches import Full

        return Full()

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one token in this layer, for numbers of ``entry`` bytes."""
        return sum(heads * size for heads, size in self.entries.values()) * entry
