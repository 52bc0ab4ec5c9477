"""Multiplicative attention (Luong, Pham and Manning, 1508.04025): a query meets a key in a product.

    dot      e[t s] = q[t] . h[s]
    general  e[t s] = q[t] . W h[s]
    concat   e[t s] = v . tanh(W [q[t]; h[s]])
    p[t s] = softmax over s of e[t s]        c[t] = sum_s p[t s] h[s]

A product is one matrix multiplication for all pairs; scaled by 1 / sqrt(k) and with learned keys and values,
``dot`` is what transformers use. With a ``window`` D attention is local-p: each query predicts an aligned
position P[t] = S sigmoid(v_p . tanh(W_p q[t])) among S source words, the softmax runs over |s - P[t]| <= D
only, and its weights are multiplied by exp(-(s - P[t])^2 / (2 (D / 2)^2)), which gives the prediction a
gradient.

It reads the memory of an encoder (``model/seq2seq.py``), not its own past: no decoder's layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cutaway.attention.common.alignment import Memory, attention_weights
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import weight_shapes
from cutaway.bounds import Bounded, Count
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.shapes import Float, Int

COST = Cost(
    prefill="2 n s d",
    memory="n s + 2 (n + s) d",
    decode="2 s d",
    state="2 s d",
)


@dataclass(frozen=True, kw_only=True)
class Config(Bounded):
    """``score``: how a query and a key are compared; ``window``: D of local-p, the whole source when None."""

    reads: ClassVar[Literal["past", "all", "memory"]] = "memory"
    attends_first: ClassVar[bool] = False  # with the state after the next word; c makes the prediction

    score: Literal["dot", "general", "concat"] = "general"
    window: Count | None = None

    def build(self, query: int, memory: int) -> Multiplicative:
        """The module for queries and a memory of these sizes."""
        return Multiplicative(self, query, memory)

    weights = weight_shapes

    def bytes_per_token(self, memory: int, entry: int) -> int:
        """Bytes of one source word, for numbers of ``entry`` bytes: h and, unless the score is ``dot``, W h.

        W h has the size of a query and is counted as if that were the size of h.
        """
        return memory * (1 if self.score == "dot" else 2) * entry


class Multiplicative(nn.Module):
    """Taps ``scores`` and ``pattern`` [b t s], and with a window ``aligned_position`` [b t 1]."""

    def __init__(self, config: Config, query: int, memory: int) -> None:
        super().__init__()
        if config.score == "dot" and query != memory:
            raise UserError(
                f"attention: a dot product needs equal sizes, not a query of {query} and a memory of {memory}"
            )
        self.config = config
        concat, local = config.score == "concat", config.window is not None
        self.key = nn.Identity() if config.score == "dot" else nn.Linear(memory, query, bias=False)
        self.query = nn.Linear(query, query, bias=False) if concat else nn.Identity()
        self.score = nn.Linear(query, 1, bias=False) if concat else nn.Identity()
        self.position = nn.Linear(query, query, bias=False) if local else nn.Identity()
        self.position_score = nn.Linear(query, 1, bias=False) if local else nn.Identity()

    def remember(self, values: Float[Tensor, "b s m"], pos: Int[Tensor, "b s"]) -> Memory:
        """The source with its keys, which all queries share: W h, or h where the score is ``dot``."""
        return Memory(values, self.key(values), pos)

    def forward(
        self, query: Float[Tensor, "b t q"], memory: Memory
    ) -> tuple[Float[Tensor, "b t m"], Float[Tensor, "b t s"]]:
        """c and p of each query."""
        if self.config.score == "concat":
            e = self.score(torch.tanh(self.query(query)[:, :, None] + memory.keys[:, None]))[..., 0]
        else:
            e = query @ memory.keys.transpose(1, 2)
        p = tap("pattern", self._weights(e, query, memory).to(query.dtype))
        return p @ memory.values, p

    def _weights(self, e: Tensor, query: Tensor, memory: Memory) -> Float[Tensor, "b t s"]:
        """The softmax; with a window only within D of P, and less the further from it."""
        if self.config.window is None:
            return attention_weights(e, memory.seen)
        length = memory.seen.sum(-1, keepdim=True)
        P = tap("aligned_position", length * self.position_score(torch.tanh(self.position(query))).sigmoid())
        distance = memory.pos[:, None] - P
        near = attention_weights(e, memory.seen & (distance.abs() <= self.config.window))
        return near * torch.exp(-distance.square() / (2 * (self.config.window / 2) ** 2))
