"""Sliding-window attention (Longformer 2004.05150, Mistral 2310.06825): the last ``window`` tokens alone.

Time grows with n w instead of n^2, and the cache stops growing at w tokens. What is further back still
arrives through the layers below, w tokens a layer. Gemma 3 has five local layers to one global.
"""

from dataclasses import dataclass

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.visibility import Causal, Visibility, Window
from cutaway.bounds import Count

COST = Cost(
    prefill="min(n, window) (n - min(n, window) / 2) h (k + v)",
    memory="n (h + g) (k + v)",
    decode="min(n, window) h (k + v)",
    state="min(n, window) g (k + v)",
)
USUAL = {"window": 1024}


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """Grouped-query heads behind a causal window: j > i - window."""

    window: Count

    @property
    def visibility(self) -> Visibility:
        return Causal() & Window(self.window)

    @property
    def held(self) -> tuple[int, int]:
        return self.window, 0
