"""Multiplicative attention (Luong, Pham and Manning, 1508.04025): a query meets a key in a product.

    dot      e[t s] = q[t] . h[s]
    general  e[t s] = q[t] . W h[s]
    concat   e[t s] = v . tanh(W [q[t]; h[s]])
    p[t s] = softmax over s of e[t s]        c[t] = sum_s p[t s] h[s]

A product is one matrix multiplication for all pairs; scaled by 1 / sqrt(k) and with learned keys and values,
``dot`` is what transformers use.

With a ``window`` D attention is local-p. Each query predicts an aligned position among the S source words,
P[t] = S sigmoid(v_p . tanh(W_p q[t])). The softmax runs over |s - P[t]| <= D only. Its weights are multiplied
by exp(-(s - P[t])^2 / (2 (D / 2)^2)): without that factor the prediction would have no gradient.

The keys come from an encoder (``model/seq2seq.py``), so it cannot be a decoder's self-attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import Shapes, linear
from cutaway.bounds import Count
from cutaway.building import Buildable
from cutaway.errors import UserError

COST = Cost(
    prefill="2 n s d",
    memory="n s + 2 (n + s) d",
    decode="2 s d",
    state="2 s d",
)


@dataclass(frozen=True, kw_only=True)
class Config(Buildable):
    """``score``: how a query and a key are compared; ``window``: D of local-p, the whole source when None."""

    module = "cutaway.attention.modules.luong:Multiplicative"
    reads: ClassVar[Literal["past", "all", "memory"]] = "memory"
    attends_first: ClassVar[bool] = False  # with the state after the next word; c makes the prediction

    score: Literal["dot", "general", "concat"] = "general"
    window: Count | None = None

    def weights(self, query: int, memory: int) -> Shapes:
        """The shape of each weight by its name."""
        self.check(query, memory)
        shapes = {} if self.score == "dot" else linear("key", query, memory)
        if self.score == "concat":
            shapes |= linear("query", query, query) | linear("score", 1, query)
        if self.window is not None:
            shapes |= linear("position", query, query) | linear("position_score", 1, query)
        return shapes

    def check(self, query: int, memory: int) -> None:
        """UserError where a dot product would be of two sizes."""
        if self.score == "dot" and query != memory:
            raise UserError(
                f"attention: a dot product needs equal sizes, not a query of {query} and a memory of {memory}"
            )

    def bytes_per_token(self, memory: int, entry: int) -> int:
        """Bytes of one source word, for numbers of ``entry`` bytes: h and, unless the score is ``dot``, W h.

        W h has the size of a query and is counted as if that were the size of h.
        """
        return memory * (1 if self.score == "dot" else 2) * entry
