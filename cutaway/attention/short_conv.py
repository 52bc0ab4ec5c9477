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

from torch import Tensor, nn

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import LayerState, weight_shapes
from cutaway.attention.common.visibility import Positions
from cutaway.attention.state.recurrent import Recurrent
from cutaway.bounds import Bounded, Count
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv as Convolution
from cutaway.position.rope import Rotation
from cutaway.shapes import Float

COST = Cost(
    prefill="n conv channels",
    memory="3 n channels",
    decode="conv channels",
    state="(conv - 1) channels",
    between="0",
)
USUAL = {"channels": "d"}


@dataclass(frozen=True, kw_only=True)
class Config(Bounded):
    """``channels`` are convolved, each over ``conv`` tokens; ``bias`` is on all matrices and channels."""

    reads: ClassVar[Literal["past", "all", "memory"]] = "past"
    heads: ClassVar[int] = 1
    position: ClassVar[None] = None

    channels: Count
    conv: Count = 3
    bias: bool = False

    def build(self, width: int) -> ShortConv:
        return ShortConv(self, width)

    weights = weight_shapes

    def state(self) -> LayerState:
        return Recurrent()

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token: none."""
        return 0

    def state_bytes(self, entry: int) -> int:
        """Bytes of one sequence's state in this layer, however long it is, for numbers of ``entry`` bytes."""
        return self.channels * (self.conv - 1) * entry


class ShortConv(nn.Module):
    """Taps ``q``, ``k``, ``v``, ``z`` and ``out_input``, which W_o multiplies: one head, [b 1 t n] each."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.query, self.key, self.value = (nn.Linear(width, channels, config.bias) for _ in range(3))
        self.out = nn.Linear(channels, width, config.bias)
        self.conv = Convolution(channels, config.conv, config.bias)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: Recurrent | None,
    ) -> Float[Tensor, "b t d"]:
        tail = None if state is None else state.get("tail")
        q, k, v = (
            tap(name, matrix(x)[:, None])[:, 0]
            for name, matrix in (("q", self.query), ("k", self.key), ("v", self.value))
        )
        z, tail = self.conv(k * v, positions.pos, positions.documents, in_order, tail)
        if state is not None:
            state.keep({"tail": tail}, positions.pos)
        return self.out(tap("out_input", q[:, None] * tap("z", z[:, None]))[:, 0])
