"""The real-gated linear recurrent unit of Griffin (2402.19427), in two of three layers of RecurrentGemma.

    h = a h + sqrt(1 - a^2) (i x)      log a = -8 r softplus(decay)      x = conv(W_x u)
    r = sigmoid(W_r x + b_r)           i = sigmoid(W_i x + b_i)          W_r and W_i within each head alone
    out = W_o (act(W_y u) h)           at position 0 what is written is i x as it is

u is the block's input. A state is one number a channel: nothing is stored by a key, and the layers of local
attention between fetch what is exact. The root keeps the size of the state even: what decays little is
written little.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import Shapes, linear, under
from cutaway.attention.common.recurrent_config import RecurrentConfig
from cutaway.bounds import Count
from cutaway.errors import UserError
from cutaway.layers.config import Activation

COST = Cost(  # of the gates' matrices and the scan by doubling, 5 times for chunks of 32
    prefill="n channels (2 channels / h + 11)",
    memory="2 n channels",
    decode="channels (2 channels / h + 3)",
    state="conv channels",
    between="11 n channels",
)
USUAL = {"channels": "d"}


@dataclass(frozen=True, kw_only=True)
class Config(RecurrentConfig):
    """``channels`` in ``heads`` equal parts, each with matrices of its gates; ``conv``: tokens it sees."""

    module = "cutaway.attention.modules.rg_lru:GatedUnit"

    heads: Count
    channels: Count
    conv: Count = 4
    activation: Activation = "gelu_tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels % self.heads:
            raise UserError(f"attention.heads is {self.heads}; it must divide channels ({self.channels})")
        if self.activation == "xielu":
            raise UserError(f"attention.activation cannot be {self.activation}, which has weights of its own")

    @property
    def groups(self) -> int:
        """How many matrices a gate has."""
        return self.heads

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Heads, rows and columns: one number a channel."""
        return self.heads, 1, self.channels // self.heads

    def weights(self, width: int) -> Shapes:
        """The shape of each weight by its name."""
        channels, size = self.channels, self.channels // self.heads
        shapes = linear("value", channels, width, bias=True) | linear("gate", channels, width, bias=True)
        shapes |= linear("conv", channels, self.conv, bias=True) | linear("out", width, channels, bias=True)
        gate = {"weight": (self.heads, size, size), "bias": (channels,)}
        return shapes | under("input_gate", gate) | under("recurrent_gate", gate) | {"decay": (channels,)}
