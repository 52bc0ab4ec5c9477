"""The gated short convolution of LFM2 (2511.23404): a mixer that sees the last few tokens, and no further.

    z = conv(k * v)     k = W_k x, v = W_v x      each channel alone, over the last ``conv`` tokens
    out = W_o (q * z)   q = W_q x

The gates k and q (the paper's B and C) are linear in x. What a layer needs from further back comes through
the few layers of attention that stand between. Its state is the last conv - 1 products of each channel,
however long the text is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import Shapes, linear
from cutaway.attention.common.recurrent_config import RecurrentConfig
from cutaway.bounds import Count

COST = Cost(
    prefill="n conv channels",
    memory="3 n channels",
    decode="conv channels",
    state="(conv - 1) channels",
    between="0",
)
USUAL = {"channels": "d"}


@dataclass(frozen=True, kw_only=True)
class Config(RecurrentConfig):
    """``channels`` are convolved, each over ``conv`` tokens; ``bias`` is on all matrices and channels."""

    module = "cutaway.attention.modules.short_conv:ShortConv"
    heads: ClassVar[int] = 1

    channels: Count
    conv: Count = 3
    bias: bool = False

    def weights(self, width: int) -> Shapes:
        """The shape of each weight by its name."""
        channels, bias = self.channels, self.bias
        shapes = linear("query", channels, width, bias) | linear("key", channels, width, bias)
        shapes |= linear("value", channels, width, bias) | linear("out", width, channels, bias)
        return shapes | linear("conv", channels, self.conv, bias)
