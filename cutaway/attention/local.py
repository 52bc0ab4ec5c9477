"""Local attention: each token sees only the ``window`` tokens up to itself (Longformer 2004.05150, Mistral
2310.06825).

Time grows with n w instead of n^2 and memory stops growing at w tokens; what lies further back still arrives
through the layers below, w tokens a layer. Gemma 3 puts five local layers to one global.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.attention import gqa
from cutaway.attention.parts.cost import Cost
from cutaway.attention.parts.visibility import Causal, Visibility, Window
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.attention.parts.state import Ring


COST = Cost(
    prefill="n min(n, window) h (k + v)",
    memory="n (h + g) (k + v)",
    decode="min(n, window) h (k + v)",
    state="min(n, window) g (k + v)",
)
USUAL = {"window": 1024}


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """Grouped-query heads behind a causal window: j > i - window."""

    window: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise UserError(f"attention: a window of {self.window} sees nothing, it must be 1 or more")

    @property
    def visibility(self) -> Visibility:
        return Causal() & Window(self.window)

    def state(self) -> Ring:
        from cutaway.attention.parts.state import Ring

        return Ring(self.window)
