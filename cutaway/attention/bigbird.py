"""BigBird (2007.14062): a window, global tokens at the start, and random earlier blocks of tokens.

Random links make any two tokens meet after few layers, as in a small world. The draw is a function of the
seed and of the block's number alone: the same while a text grows, and the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.visibility import Causal, Global, Random, Visibility, Window
from cutaway.bounds import Count, Natural

SEEN = "min(n, window + globals + random block)"
COST = Cost(
    prefill=f"{SEEN} (n - {SEEN} / 2) h (k + v)",
    memory="n (h + g) (k + v)",
    decode=f"{SEEN} h (k + v)",
    state="n g (k + v)",
)
USUAL = {"window": 192, "globals": 128, "block": 64, "random": 3}


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """A window, the first ``globals`` tokens, and ``random`` blocks for each block of ``block`` queries."""

    window: Count
    globals: Count
    block: Count
    random: Count
    seed: Natural = 0

    @property
    def visibility(self) -> Visibility:
        near = Window(self.window) | Global(self.globals)
        return Causal() & (near | Random(self.block, self.random, self.seed))
