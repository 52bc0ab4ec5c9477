"""Attention of an encoder (1810.04805, 2004.05150): a token attends to both sides, all of it or a reach.

An encoder has the whole text before it. It decodes nothing, so it has no cache and no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.visibility import All, Global, Near, Visibility
from cutaway.bounds import Natural
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.attention.common.mixer import LayerState

COST = Cost(
    prefill="n min(n, 2 reach + 1 + 2 globals) h (k + v)",
    memory="n (h + g) (k + v)",
    decode=None,
    state="0",
)


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """``reach``: tokens to either side, None for all; the first ``globals`` see and are seen by all."""

    reads: ClassVar[Literal["past", "all", "memory"]] = "all"

    reach: Natural | None = None
    globals: Natural = 0

    @property
    def visibility(self) -> Visibility:
        if self.reach is None:
            return All()
        return Near(self.reach) | Global(self.globals) if self.globals else Near(self.reach)

    def state(self) -> LayerState:
        raise UserError("attention: an encoder reads the whole text at once, it has no state to decode from")

    def bytes_per_token(self, entry: int) -> int:
        """None: an encoder has no cache."""
        return 0
