"""Grouped-query attention (2305.13245): query heads share key-value heads in groups of h / g.

Query head h reads key-value head h // (h / g): with g = h it is mha, with g = 1 mqa. Llama, Mistral, Qwen and
most open models since 2023 use it."""

from dataclasses import dataclass

from cutaway.attention.parts.cost import SOFTMAX
from cutaway.attention.parts.heads import Heads
from cutaway.errors import UserError

COST = SOFTMAX


@dataclass(frozen=True, kw_only=True)
class Config(Heads):
    """``kv_heads`` key-value heads, a divisor of ``heads``."""

    kv_heads: int

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise UserError(
                f"attention: {self.heads} query heads cannot share {self.kv_heads} key-value heads evenly"
            )

    @property
    def groups(self) -> int:
        return self.kv_heads
