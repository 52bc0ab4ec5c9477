"""The equation that every softmax attention shares.

    o[t] = sum_s p[t s] v[s]        p = softmax over s of  q[t] . k[s] * scale  where t sees s, else 0

A token that sees nothing gets o = 0. Several query heads may share a key-value head (grouped queries, 2305.13245): head
h reads key-value head h // (h / g).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cutaway.attention.parts.visibility import Places, Visibility
from cutaway.shapes import Float


@dataclass(frozen=True)
class Problem:
    """One attention to compute: tensors, who sees whom, and how scores are made.

    ``in_order`` promises that query and key are the same positions, without padding, holes or documents.
    ``softcap`` bounds scores to c tanh(score / c), before anything is hidden (Gemma 2, 2408.00118).
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
