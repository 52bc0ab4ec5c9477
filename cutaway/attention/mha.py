"""Multi-head attention (1706.03762): every query head has a key and a value head of its own.

    o_h = softmax(q_h k_h' / sqrt(k)) v_h        out = W_o [o_1 ... o_h]

The KV cache holds 2 h k numbers of each token in each layer, which mqa, gqa and mla reduce.
"""

from dataclasses import dataclass

from cutaway.attention.common.cost import SOFTMAX
from cutaway.attention.common.heads import Heads

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(Heads):
    """``Heads`` as it is: as many key-value heads as query heads, causal, with a full KV cache."""
