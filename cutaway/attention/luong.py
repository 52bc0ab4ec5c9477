"""Multiplicative attention (Luong, Pham and Manning, 1508.04025): a query meets a key in a product.

    dot      e[t s] = q[t] . h[s]
    general  e[t s] = q[t] . W h[s]
    concat   e[t s] = v . tanh(W [q[t]; h[s]])
    p[t s] = softmax over s of e[t s]        c[t] = sum_s p[t s] h[s]

A product is one matrix multiplication for all pairs; scaled by 1 / sqrt(k) and with learned keys and values,
``dot`` is what transformers use. With a ``window`` D attention is local-p: each query predicts where to look,
P[t] = S sigmoid(v_p . tanh(W_p q[t])) among S source words, the softmax runs over |s - P[t]| <= D only, and
its shares are multiplied by exp(-(s - P[t])^2 / (2 (D / 2)^2)), which lets the prediction learn.

It reads the memory of an encoder (``model/seq2seq.py``), not its own past: no decoder's layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cutaway.attention.parts.cost import Cost
from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import nn


COST = Cost(
    prefill="2 n s d",
    memory="n s + 2 (n + s) d",
    decode="2 s d",
    state="2 s d",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """``score``: how a query and a key are matched; ``window``: D of local-p, None looks at all."""

    reads: ClassVar[Literal["past", "all", "memory"]] = "memory"

    score: Literal["dot", "general", "concat"] = "general"
    window: int | None = None

    looks_first = False  # the state after the next word asks, and what it read makes the prediction

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise UserError(
                f"attention: a window of {self.window} source words is too narrow, it must be 1 or more"
            )

    def build(self, query: int, memory: int) -> nn.Module:
        """The module for queries and a memory of these sizes."""
        from cutaway.attention.parts.luong import Multiplicative

        return Multiplicative(self, query, memory)

    def weights(self, query: int, memory: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        if self.score == "dot" and query != memory:
            raise UserError(
                f"attention: a dot product needs equal sizes, not a query of {query} and a memory of {memory}"
            )
        shapes: dict[str, tuple[int, ...]] = {}
        if self.score == "general":
            shapes["key.weight"] = (query, memory)
        if self.score == "concat":
            shapes |= {
                "key.weight": (query, memory),
                "query.weight": (query, query),
                "score.weight": (1, query),
            }
        if self.window is not None:
            shapes |= {"place.weight": (query, query), "place_score.weight": (1, query)}
        return shapes

    def bytes_per_token(self, memory: int, entry: int) -> int:
        """Bytes of one source word, for numbers of ``entry`` bytes: h and, unless the product is plain, W h,
        which is as long as a query and counted as if queries were as long as h.
        """
        return memory * (1 if self.score == "dot" else 2) * entry
