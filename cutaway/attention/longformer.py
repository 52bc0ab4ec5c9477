"""Longformer (2004.05150): a window, and a few global tokens at the start that see and are seen by all.

The window makes time grow with n w; the global tokens carry what is far in two steps, through themselves.
This is the decoder's form: no token sees later ones, so the global tokens are read by all and read what is
before them. In an encoder the same pattern is ``bidirectional`` with a ``reach`` and ``globals``.
"""

from dataclasses import dataclass

from cutaway.attention import local
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.visibility import Causal, Global, Visibility, Window
from cutaway.bounds import Count

COST = Cost(
    prefill="min(n, window + globals) (n - min(n, window + globals) / 2) h (k + v)",
    memory="n (h + g) (k + v)",
    decode="min(n, window + globals) h (k + v)",
    state="min(n, window + globals) g (k + v)",
)
USUAL = {"window": 512, "globals": 64}


@dataclass(frozen=True, kw_only=True)
class Config(local.Config):
    """A window, and the first ``globals`` tokens."""

    globals: Count

    @property
    def visibility(self) -> Visibility:
        return Causal() & (Window(self.window) | Global(self.globals))

    @property
    def held(self) -> tuple[int, int]:
        return self.window, self.globals
