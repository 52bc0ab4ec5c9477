"""Additive attention (Bahdanau, Cho and Bengio, 1409.0473): where attention began, in a translator of 2014.

    e[t s] = v . tanh(W q[t] + U h[s])    p[t s] = softmax over s of e[t s]    c[t] = sum_s p[t s] h[s]

Until then an encoder squeezed a sentence into one vector, and the decoder had nothing else. Here the decoder
compares its state q[t] with every source word h[s] before it writes word t, and reads their weighted sum
c[t]. U h[s] is the same for all t and is computed once.

It reads the memory of an encoder (``model/seq2seq.py``), not its own past: it is not a layer of a decoder
alone.
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
from cutaway.hooks import tap
from cutaway.shapes import Float, Int

COST = Cost(
    prefill="n s (size + d)",
    memory="n s + (n + s) (size + d)",
    decode="s (size + d)",
    state="s (size + d)",
)
USUAL = {"size": "d"}


@dataclass(frozen=True, kw_only=True)
class Config(Bounded):
    """``size``: the length of W q and U h."""

    reads: ClassVar[Literal["past", "all", "memory"]] = "memory"
    attends_first: ClassVar[bool] = True  # with the state before the next word, which c then updates

    size: Count

    def build(self, query: int, memory: int) -> Additive:
        """The module for queries and a memory of these sizes."""
        return Additive(self, query, memory)

    weights = weight_shapes

    def bytes_per_token(self, memory: int, entry: int) -> int:
        """Bytes of one source word, for numbers of ``entry`` bytes: h, and U h."""
        return (memory + self.size) * entry


class Additive(nn.Module):
    """Taps ``scores`` and ``pattern`` [b t s]."""

    def __init__(self, config: Config, query: int, memory: int) -> None:
        super().__init__()
        self.query = nn.Linear(query, config.size, bias=False)
        self.key = nn.Linear(memory, config.size)
        self.score = nn.Linear(config.size, 1, bias=False)

    def remember(self, values: Float[Tensor, "b s m"], pos: Int[Tensor, "b s"]) -> Memory:
        """The source with its keys U h, which all queries share."""
        return Memory(values, self.key(values), pos)

    def forward(
        self, query: Float[Tensor, "b t q"], memory: Memory
    ) -> tuple[Float[Tensor, "b t m"], Float[Tensor, "b t s"]]:
        """c and p of each query."""
        e = self.score(torch.tanh(self.query(query)[:, :, None] + memory.keys[:, None]))[..., 0]
        p = tap("pattern", attention_weights(e, memory.seen).to(query.dtype))
        return p @ memory.values, p
