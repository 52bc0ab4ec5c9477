"""Mamba (2312.00752): a state space model whose steps depend on the token, the selective scan.

    h = exp(dt A) h + dt B x        y = C' h + D x       A = -exp(A_log), one number a channel and state
    dt = softplus(W_dt W_r x + dt_bias), B = W_B x, C = W_C x       x = silu(conv(W_x u))
    out = W_o (y silu(W_z u))

u is the block's input. Each channel has a small state of its own, ``state_size`` numbers that decay at
different rates; B says what of a token is written, C what is read, and they are the same for all channels. A
long step dt writes much and forgets much, a short one skips the token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import Shapes, linear, under
from cutaway.attention.common.recurrent_config import RecurrentConfig
from cutaway.bounds import Count
from cutaway.layers.config import Norm

COST = Cost(  # of the scan by doubling, 5 times for chunks of 32
    prefill="13 n channels state_size",
    memory="n channels state_size",
    decode="3 channels state_size",
    state="channels state_size + (conv - 1) channels",
)
USUAL = {"channels": "2 d", "rank": "(d + 15) / 16"}


@dataclass(frozen=True, kw_only=True)
class Config(RecurrentConfig):
    """``channels`` with ``state_size`` numbers each; ``conv``: tokens that the convolution sees.

    ``rank``: the size between the two matrices of the step; ``bias`` is on the projections of the block's
    input and on the last. ``norm`` is of what the step, B and C are made of, each alone (Jamba), without
    weights in Falcon Mamba.
    """

    module = "cutaway.attention.modules.mamba:Mamba"
    heads: ClassVar[int] = 1

    channels: Count
    rank: Count
    state_size: Count = 16
    conv: Count = 4
    bias: bool = False
    conv_bias: bool = True
    norm: Norm | None = None

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """States, their rows and columns: one a channel."""
        return self.channels, self.state_size, 1

    def weights(self, width: int) -> Shapes:
        """The shape of each weight by its name."""
        channels, size = self.channels, self.state_size
        shapes = linear("value", channels, width, self.bias) | linear("gate", channels, width, self.bias)
        shapes |= linear("step_down", self.rank, channels) | linear("step", channels, self.rank)
        shapes |= linear("key", size, channels) | linear("query", size, channels)
        shapes |= linear("conv", channels, self.conv, self.conv_bias) | linear(
            "out", width, channels, self.bias
        )
        shapes |= {"dt_bias": (channels,), "A_log": (channels, size), "D": (channels,)}
        for name, of in {"step_norm": self.rank, "key_norm": size, "query_norm": size}.items():
            shapes |= {} if self.norm is None else under(name, self.norm.weights(of))
        return shapes
