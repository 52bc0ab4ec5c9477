"""The gated short convolution of LFM2 (2511.23404): a mixer that sees the last few tokens, and no further.

    z = conv(k * v)     k = W_k x, v = W_v x      each channel alone, over the last ``conv`` tokens
    out = W_o (q * z)   q = W_q x

The gates k and q (the paper's B and C) are linear in x. What a layer needs from further back comes through
the few layers of attention that stand between. Its state is the last conv - 1 products of each channel,
however long the text is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import LayerState, Shapes, linear
from cutaway.bounds import Count
from cutaway.building import Buildable

COST = Cost(
    prefill="n conv channels",
    memory="3 n channels",
    decode="conv channels",
    state="(conv - 1) channels",
    between="0",
)
USUAL = {"channels": "d"}


@dataclass(frozen=True, kw_only=True)
class Config(Buildable):
    """``channels`` are convolved, each over ``conv`` tokens; ``bias`` is on all matrices and channels."""

    module = "cutaway.attention.modules.short_conv:ShortConv"
    reads: ClassVar[Literal["past", "all", "memory"]] = "past"
    heads: ClassVar[int] = 1
    position: ClassVar[None] = None

    channels: Count
    conv: Count = 3
    bias: bool = False

    def weights(self, width: int) -> Shapes:
        """The shape of each weight by its name."""
        channels, bias = self.channels, self.bias
        shapes = linear("query", channels, width, bias) | linear("key", channels, width, bias)
        shapes |= linear("value", channels, width, bias) | linear("out", width, channels, bias)
        return shapes | linear("conv", channels, self.conv, bias)

    def state(self) -> LayerState:
        from cutaway.attention.state.recurrent import Recurrent

        return Recurrent()

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token: none."""
        return 0

    def state_bytes(self, entry: int) -> int:
        """Bytes of one sequence's state in this layer, however long it is, for numbers of ``entry`` bytes."""
        return self.channels * (self.conv - 1) * entry
