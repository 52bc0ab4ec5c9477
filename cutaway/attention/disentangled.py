"""Disentangled attention (DeBERTa, 2006.03654): content and position are scored apart.

    score(i, j) = (q_i . k_j  +  q_i . K d(i, j)  +  k_j . Q d(i, j)) / sqrt(n k)

d(i, j) is the embedding of the distance i - j (``position/distances.py``), which all layers share. K and Q
make a key and a query of it, by matrices of their own or by those of the text. n is the number of terms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.heads import Heads
from cutaway.attention.common.mixer import LayerState, Shapes, linear, under
from cutaway.attention.common.visibility import All, Visibility
from cutaway.errors import UserError
from cutaway.position import distances

COST = Cost(
    prefill="n (3 n + 4 relative.span) h k", memory="n (n + 4 relative.span) h", decode=None, state="0"
)


@dataclass(frozen=True, kw_only=True)
class Config(Heads):
    """``content_to_position`` and ``position_to_content``: the second and the third term.

    With ``shared_projections`` the text's matrices project distances too (DeBERTa-v3). ``distance_bias`` and
    ``key_bias`` are those of the keys of distances and of the text; DeBERTa has neither.
    """

    module = "cutaway.attention.modules.disentangled:DisentangledAttention"
    reads: ClassVar[Literal["past", "all", "memory"]] = "all"

    relative: distances.Config = field(  # type: ignore[assignment]
        default=distances.Config(256), metadata={"variants": "cutaway.position"}
    )
    content_to_position: bool = True
    position_to_content: bool = True
    shared_projections: bool = False
    distance_bias: bool = True
    key_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.content_to_position or self.position_to_content):
            raise UserError("attention: disentangled needs content_to_position or position_to_content")
        odd: list[Any] = [self.position, self.qk_norm, self.clip, self.temperature, self.scale]
        if any(odd) or self.value_of_key or self.kv_layer is not None:
            raise UserError("attention: disentangled scores take no other positions, norms or scale")

    @property
    def terms(self) -> int:
        """How many terms a score has."""
        return 1 + self.content_to_position + self.position_to_content

    @property
    def visibility(self) -> Visibility:
        return All()

    def state(self) -> LayerState:
        raise UserError("attention: an encoder reads the whole text at once, it has no state to decode from")

    def bytes_per_token(self, entry: int) -> int:
        """None: an encoder has no cache."""
        return 0

    def weights(self, width: int) -> Shapes:
        size = self.heads * self.key_size
        own = ("key.", "relative.")
        shapes = {name: one for name, one in super().weights(width).items() if not name.startswith(own)}
        shapes |= linear("key", size, width, self.bias and self.key_bias)
        shapes |= under("relative", self.relative.weights(width))
        if not self.shared_projections and self.content_to_position:
            shapes |= linear("distance_key", size, width, self.distance_bias)
        if not self.shared_projections and self.position_to_content:
            shapes |= linear("distance_query", size, width, bias=True)
        return shapes
