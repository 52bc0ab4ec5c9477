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

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import Shapes, linear
from cutaway.bounds import Count
from cutaway.building import Buildable

COST = Cost(
    prefill="n s (size + d)",
    memory="n s + (n + s) (size + d)",
    decode="s (size + d)",
    state="s (size + d)",
)
USUAL = {"size": "d"}


@dataclass(frozen=True, kw_only=True)
class Config(Buildable):
    """``size``: the length of W q and U h."""

    module = "cutaway.attention.modules.bahdanau:Additive"
    reads: ClassVar[Literal["past", "all", "memory"]] = "memory"
    attends_first: ClassVar[bool] = True  # with the state before the next word, which c then updates

    size: Count

    def weights(self, query: int, memory: int) -> Shapes:
        """The shape of each weight by its name."""
        keys = linear("key", self.size, memory, bias=True)
        return linear("query", self.size, query) | keys | linear("score", 1, self.size)

    def bytes_per_token(self, memory: int, entry: int) -> int:
        """Bytes of one source word, for numbers of ``entry`` bytes: h, and U h."""
        return (memory + self.size) * entry
