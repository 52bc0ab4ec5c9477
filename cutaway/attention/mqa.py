"""Multi-query attention (1911.02150): all query heads read one shared key head and one value head.

The cache is h times smaller than that of mha, and decoding, which is bound by reading it, faster by as much;
quality drops a little, which is why gqa stands between the two."""

from dataclasses import dataclass

from cutaway.attention.parts.cost import SOFTMAX
from cutaway.attention.parts.heads import Heads

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(Heads):
    """One key-value head."""

    @property
    def groups(self) -> int:
        return 1
