"""Additive attention (Bahdanau, Cho and Bengio, 1409.0473): where attention began, in a translator of 2014.

    e[t s] = v . tanh(W q[t] + U h[s])    p[t s] = softmax over s of e[t s]    c[t] = sum_s p[t s] h[s]

Until then an encoder squeezed a sentence into one vector and the decoder lived off it. Here the decoder,
about to write word t and in state q[t], asks every source word h[s] how well it fits, and reads their mixture
c[t]. U h[s] is the same for all t and is computed once.

It reads the memory of an encoder (``model/seq2seq.py``), not its own past: it is not a layer of a decoder
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cutaway.attention.parts.cost import Cost
from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import nn


COST = Cost(
    prefill="n s (size + d)",
    memory="n s + (n + s) (size + d)",
    decode="s (size + d)",
    state="s (size + d)",
)
USUAL = {"size": "d"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """``size``: how many numbers W q and U h are compared in."""

    reads: ClassVar[Literal["past", "all", "memory"]] = "memory"

    size: int

    looks_first = True  # the state before the next word asks, and what it read makes the state after

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(
                f"attention: queries and keys cannot be compared in {self.size} numbers, it must be 1 or more"
            )

    def build(self, query: int, memory: int) -> nn.Module:
        """The module for queries and a memory of these sizes."""
        from cutaway.attention.parts.bahdanau import Additive

        return Additive(self, query, memory)

    def weights(self, query: int, memory: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        return {
            "query.weight": (self.size, query),
            "key.weight": (self.size, memory),
            "key.bias": (self.size,),
            "score.weight": (1, self.size),
        }

    def bytes_per_token(self, memory: int, entry: int) -> int:
        """Bytes of one source word, for numbers of ``entry`` bytes: h, and U h."""
        return (memory + self.size) * entry
