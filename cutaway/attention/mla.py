"""Multi-head latent attention (DeepSeek-V2, 2405.04434): keys and values are read out of one small vector a
token.

    c = RMS(W_c x)    kr = RoPE(W_kr x)        what is remembered: c and kr, for all heads together
    k_h = [W_uk,h c ; kr]    v_h = W_uv,h c    q_h = [W_q,h x ; RoPE(W_qr,h x)]

The cache is that of a single head of size c + kr, and yet every head has keys and values of its own.
Position sits in kr alone, because a turned key could not be taken apart into W_uk and c. And it must be:
since q . (W_uk c) = (W_uk' q) . c, a decoder turns W_uk to the query's side and reads the latents as they
lie, all heads the same ones ("absorbed"); over a long prompt reading keys and values out ("expanded") costs
less. Both are this equation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from cutaway.attention.parts.cost import Cost
from cutaway.attention.parts.visibility import Causal, Visibility
from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.position import rope

if TYPE_CHECKING:
    from torch import nn

    from cutaway.attention.parts.mixer import Memory


COST = Cost(
    prefill="n² h (k + turned_size + v) / 2 + n latent h (k + v)",
    memory="2 n h (k + turned_size + v)",
    decode="n h (2 latent + turned_size) + h latent (k + v)",
    state="n (latent + turned_size)",
)
USUAL = {"latent": "4 k", "turned_size": "k / 2"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """``latent``: the size of c; ``turned_size`` that of kr; ``key_size`` and ``value_size`` what a head
    reads out of c.

    ``query_latent``: queries too come out of a normed latent of this size, straight from x when None.
    ``scale`` is 1/sqrt(key_size + turned_size) when None.
    """

    reads: ClassVar[Literal["past", "all", "memory"]] = "past"

    heads: int
    key_size: int
    turned_size: int
    latent: int
    value_size: int | None = None
    query_latent: int | None = None
    position: rope.Config | None = field(default=None, metadata={"variants": "cutaway.position"})
    norm: Norm = Norm(eps=1e-6)
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.position is not None and self.position.size > self.turned_size:
            raise UserError(
                f"attention: {self.position.size} dimensions cannot be turned, kr has {self.turned_size}"
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
        """What is remembered of a token: one head, c and kr side by side."""
        return {"latent": (1, self.latent + self.turned_size)}

    def absorbs(self, queries: int, keys: int) -> bool:
        """Whether reading the latents as they lie takes fewer multiplications than reading keys and
        values out first.
        """
        sizes, latent = self.key_size + self.values, self.latent
        expanded = keys * latent * sizes + queries * keys * (sizes + self.turned_size)
        absorbed = queries * latent * sizes + queries * keys * (2 * latent + self.turned_size)
        return absorbed < expanded

    def build(self, width: int) -> nn.Module:
        from cutaway.attention.parts.latent import LatentAttention

        return LatentAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        rows = self.heads * (self.key_size + self.turned_size)
        out = {
            "down.weight": (self.latent + self.turned_size, width),
            "key_up.weight": (self.heads * self.key_size, self.latent),
            "value_up.weight": (self.heads * self.values, self.latent),
            "out.weight": (width, self.heads * self.values),
        }
        out |= {f"latent_norm.{name}": shape for name, shape in self.norm.weights(self.latent).items()}
        if self.query_latent is None:
            return out | {"query.weight": (rows, width)}
        out |= {f"query_norm.{name}": shape for name, shape in self.norm.weights(self.query_latent).items()}
        return out | {
            "query_down.weight": (self.query_latent, width),
            "query.weight": (rows, self.query_latent),
        }

    def state(self) -> Memory:
        from cutaway.attention.parts.state import Full

        return Full()

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one token in this layer, for numbers of ``entry`` bytes."""
        return sum(heads * size for heads, size in self.entries.values()) * entry
