"""Multi-head attention (1706.03762): every query head has a key and a value head of its own.

    o_h = softmax(q_h k_h' / sqrt(k)) v_h        out = W_o [o_1 ... o_h]

Each token remembers 2 h k numbers in each layer, which is what mqa, gqa and mla set out to shrink.
"""

from dataclasses import dataclass

from cutaway.attention.parts.cost import SOFTMAX
from cutaway.attention.parts.heads import Heads

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(Heads):
    """All of it is in ``Heads``: as many key-value heads as query heads, causal, everything remembered."""
