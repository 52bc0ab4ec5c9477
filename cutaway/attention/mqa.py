"""Multi-query attention (1911.02150): all query heads read one shared key head and one value head.

The KV cache is h times smaller than that of mha, and decoding, which is bound by reading it, faster by as
much; quality drops a little, so gqa has a few key-value heads instead.
"""

from dataclasses import dataclass

from cutaway.attention.common.cost import SOFTMAX
from cutaway.attention.common.heads import Heads

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(Heads):
    """One key-value head."""

    @property
    def groups(self) -> int:
        return 1
