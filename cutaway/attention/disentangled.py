"""Disentangled attention (DeBERTa, 2006.03654): content and position are scored apart.

    score(i, j) = (q_i . k_j  +  q_i . K d(i, j)  +  k_j . Q d(i, j)) / sqrt(n k)

d(i, j) is the embedding of the distance i - j (``position/distances.py``), which all layers share. K and Q
make a key and a query of it, by matrices of their own or by those of the text. n is the number of terms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cutaway.attention.backends import naive
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.heads import Heads
from cutaway.attention.common.mixer import weight_shapes
from cutaway.attention.common.softmax import SoftmaxAttention
from cutaway.attention.common.visibility import All, Positions, Visibility
from cutaway.errors import UserError
from cutaway.position import distances
from cutaway.shapes import Float, Int

if TYPE_CHECKING:
    from cutaway.attention.common.mixer import LayerState

COST = Cost(
    prefill="n (3 n + 4 relative.span) h k", memory="n (n + 4 relative.span) h", decode=None, state="0"
)


@dataclass(frozen=True, kw_only=True)
class Config(Heads):
    """``content_to_position`` and ``position_to_content``: the second and the third term.

    With ``shared_projections`` the text's matrices project distances too (DeBERTa-v3). ``distance_bias`` and
    ``key_bias`` are those of the keys of distances and of the text; DeBERTa has neither.
    """

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

    def build(self, width: int) -> DisentangledAttention:
        return DisentangledAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        return weight_shapes(self, width)


class DisentangledAttention(SoftmaxAttention):
    """Taps what softmax attention taps. Its scores need all pairs of tokens in memory."""

    config: Config

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        size = config.heads * config.key_size
        self.key = nn.Linear(width, size, config.bias and config.key_bias)
        self.relative = config.relative.build(width)
        self.scale = (config.key_size * config.terms) ** -0.5
        own = not config.shared_projections
        self.distance_key = self.distance_query = None
        if own and config.content_to_position:
            self.distance_key = nn.Linear(width, size, config.distance_bias)
        if own and config.position_to_content:
            self.distance_query = nn.Linear(width, size)

    def attend(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b g s k"],
        v: Float[Tensor, "b g s v"],
        query: Positions,
        key: Positions,
        in_order: bool,
    ) -> Float[Tensor, "b h t v"]:
        vectors, chosen = self.relative(), self.chosen(query.pos, key.pos)[:, None]
        added: Any = 0.0
        if self.config.content_to_position:
            keys = self._projected(self.distance_key or self.key, vectors)
            added = (q @ keys.mT).gather(-1, chosen.expand(-1, q.shape[1], -1, -1))
        if self.config.position_to_content:
            queries = self._projected(self.distance_query or self.query, vectors)
            read = (k @ queries.mT).gather(-1, chosen.mT.expand(-1, k.shape[1], -1, -1))
            added = added + read.mT
        added = added * self.scale
        seen = self.config.visibility
        return naive.attend(AttentionInputs(q, k, v, query, key, seen, self.scale, bias=lambda *_: added))

    def _projected(self, matrix: nn.Module, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "h n k"]:
        return matrix(vectors).unflatten(-1, (self.config.heads, -1)).transpose(0, 1)

    def chosen(self, query: Int[Tensor, "b t"], key: Int[Tensor, "b s"]) -> Int[Tensor, "b t s"]:
        """The row of the table that is the vector of each pair's distance."""
        span, farthest = self.config.relative.span, self.config.relative.farthest
        apart = query[:, :, None] - key[:, None, :]
        if farthest is not None:
            half = span // 2
            far = apart.abs().clamp(min=half)
            # In float32 and this order, as DeBERTa computes it: a rounding decides which vector is taken.
            scale = torch.log(torch.tensor((farthest - 1) / half))
            steps = torch.ceil(torch.log(far / half) / scale.to(far.device) * (half - 1)) + half
            apart = torch.where(apart.abs() <= half, apart, steps.long() * apart.sign())
        return (apart + span).clamp(0, 2 * span - 1)
