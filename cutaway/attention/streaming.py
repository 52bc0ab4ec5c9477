"""A window that keeps the first tokens (StreamingLLM, 2309.17453): they are an attention sink.

The attention weights of a softmax sum to 1, and models learn to leave what they do not need at the first
tokens. A plain window drops those tokens once the text outgrows it, and the model breaks down; with them it
reads on without end in constant memory. Positions here stay those of the text; the paper renumbers what is
left in the window, which matters past the length that the model was trained to.
"""

from dataclasses import dataclass

from cutaway.attention import local
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.visibility import Causal, Sink, Visibility, Window
from cutaway.bounds import Count

COST = Cost(
    prefill="min(n, window + first) (n - min(n, window + first) / 2) h (k + v)",
    memory="n (h + g) (k + v)",
    decode="min(n, window + first) h (k + v)",
    state="min(n, window + first) g (k + v)",
)
USUAL = {"window": 1020, "first": 4}


@dataclass(frozen=True, kw_only=True)
class Config(local.Config):
    """The ``first`` tokens, and a window."""

    first: Count

    @property
    def visibility(self) -> Visibility:
        return Causal() & (Window(self.window) | Sink(self.first))

    @property
    def held(self) -> tuple[int, int]:
        return self.window, self.first
