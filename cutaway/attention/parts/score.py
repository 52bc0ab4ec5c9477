"""The equation that every softmax attention shares.

    o[t] = sum_s p[t s] v[s]        p = softmax over s of  q[t] . k[s] * scale  where t sees s, else 0

A token that sees nothing gets o = 0. Several query heads may share a key-value head (grouped queries,
2305.13245): head h reads key-value head h // (h / g).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cutaway.attention.parts.visibility import Places, Visibility, mask
from cutaway.shapes import Bool, Float

Bias = Callable[
    [Tensor, Tensor], Tensor
]  # positions Int[b t] and Int[b s] to what is added to scores, [b h t s]
Chosen = Callable[[slice], Tensor]  # which keys these queries read, Bool[b t s]


@dataclass(frozen=True)
class Problem:
    """One attention to compute: tensors, who sees whom, and how scores are made.

    ``in_order`` promises that query and key are the same positions, without padding, holes or documents.
    ``softcap`` bounds scores to c tanh(score / c), before anything is added or hidden (Gemma 2, 2408.00118).
    ``bias`` is added to scores (ALiBi, T5). ``sinks`` are scores, one a head, of a key that everyone sees and
    whose value is zero: they take their share of attention and give nothing (GPT-OSS). ``chosen`` hides all
    but these from who would see them (top-k); as a function it is asked for some queries at a time, so that
    the choices of all need not stand in memory together.
    """

    q: Float[Tensor, "b h t k"]
    k: Float[Tensor, "b g s k"]
    v: Float[Tensor, "b g s v"]
    query: Places
    key: Places
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
        """The keys that these queries chose, None where nobody chooses."""
        if self.chosen is None:
            return None
        return self.chosen[:, rows] if isinstance(self.chosen, Tensor) else self.chosen(rows)
