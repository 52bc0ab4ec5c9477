"""Grouped-query attention (2305.13245): query heads share key-value heads in groups of h / g.

Query head i reads key-value head i // (h / g): with g = h it is mha, with g = 1 mqa. Llama, Mistral, Qwen and
most open models since 2023 use it."""

from dataclasses import dataclass

from cutaway.attention.common.cost import SOFTMAX
from cutaway.attention.common.heads import Heads
from cutaway.bounds import Count
from cutaway.errors import UserError

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(Heads):
    """``kv_heads`` key-value heads, a divisor of ``heads``."""

    kv_heads: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads % self.kv_heads:
            raise UserError(f"attention.kv_heads is {self.kv_heads}; it must divide heads ({self.heads})")

    @property
    def groups(self) -> int:
        return self.kv_heads
