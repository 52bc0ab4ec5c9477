"""Attention of an encoder: a token reads on both sides, all of the text or ``reach`` tokens each way
(1810.04805, 2004.05150).

An encoder has the whole text before it, so nothing is remembered and nothing is decoded: it has no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cutaway.attention import gqa
from cutaway.attention.parts.cost import Cost
from cutaway.attention.parts.visibility import All, Global, Near, Visibility
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.attention.parts.mixer import Memory


COST = Cost(
    prefill="n min(n, 2 reach + 1 + 2 globals) h (k + v)",
    memory="n (h + g) (k + v)",
    decode=None,
    state="0",
)


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """``reach``: how far to either side, everything when None; the first ``globals`` tokens see and
    are seen by all.
    """

    reads: ClassVar[Literal["past", "all", "memory"]] = "all"

    reach: int | None = None
    globals: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reach is not None and self.reach < 0:
            raise UserError(f"attention: a reach of {self.reach} sees nothing, it must be 0 or more")

    @property
    def visibility(self) -> Visibility:
        if self.reach is None:
            return All()
        return Near(self.reach) | Global(self.globals) if self.globals else Near(self.reach)

    def state(self) -> Memory:
        raise UserError(
            "attention: a token of an encoder reads what comes after it, so there is nothing to go on from"
        )

    def bytes_per_token(self, entry: int) -> int:
        """Nothing is remembered."""
        return 0
