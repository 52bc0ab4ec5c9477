"""The inputs of softmax attention, and the equation that every backend computes.

    o[t] = sum_s p[t s] v[s]        p = softmax over s of  q[t] . k[s] * scale  where t sees s, else 0

A token that sees nothing gets o = 0. Several query heads may share a key-value head (grouped queries,
2305.13245): head i reads key-value head i // (h / g).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cutaway.attention.common.visibility import Positions, Visibility, mask
from cutaway.shapes import Bool, Float

Bias = Callable[[Tensor, Tensor], Tensor]  # positions Int[b t] and Int[b s] to addends of scores [b h t s]
Chosen = Callable[[slice], Tensor]  # some queries to the keys they read, Bool[b t s]


@dataclass(frozen=True)
class AttentionInputs:
    """Queries, keys and values, the mask, and what is done to scores.

    ``in_order`` promises that query and key are the same positions, without padding, holes or documents.
    ``softcap`` bounds scores to c tanh(score / c), before anything is added or hidden (Gemma 2, 2408.00118).
    ``bias`` is added to scores (ALiBi, T5). ``sinks`` are scores, one a head, of a key that every query sees
    and whose value is zero: they take attention and give nothing (GPT-OSS). ``chosen`` hides all other keys
    (top-k); as a function it is called for some queries at a time, so that the mask of all is never in
    memory.
    """

    q: Float[Tensor, "b h t k"]
    k: Float[Tensor, "b g s k"]
    v: Float[Tensor, "b g s v"]
    query: Positions
    key: Positions
    visibility: Visibility
    scale: float
    softcap: float | None = None
    in_order: bool = False
    bias: Bias | None = None
    sinks: Float[Tensor, "h"] | None = None
    chosen: Bool[Tensor, "b t s"] | Chosen | None = None

    def seen(self) -> Bool[Tensor, "b 1 t s"]:
        """True where query t reads key s."""
        seen, chosen = mask(self.visibility, self.query, self.key), self.chosen_by(slice(None))
        return (seen if chosen is None else seen & chosen)[:, None]

    def chosen_by(self, rows: slice) -> Bool[Tensor, "b t s"] | None:
        """The keys that these queries chose, None where there is no choice."""
        if self.chosen is None:
            return None
        return self.chosen[:, rows] if isinstance(self.chosen, Tensor) else self.chosen(rows)
