"""Mamba 2 (2405.21060) as a mixer: a state space model that turned out to be linear attention with gates.

    S = a S + dt B x'      y = C' S + D x      log a = -dt exp(A_log)      dt = softplus(W_dt u + dt_bias)
    x, B, C = silu(conv(W u))                  out = W_o norm(y * silu(W_z u))

u is the block's input. C is the query, B the key and x the value: k = N, the paper's state size, and v = P,
its head size. One step dt opens the door both ways: a token that lasts long writes much and makes the memory
forget much. D lets a token read itself past the memory. Heads of a group share B and C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.attention.parts.cost import Cost
from cutaway.attention.parts.recurrent import Recurring
from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import nn


COST = Cost(
    prefill="n h (64 (k + v) + 2 k v)",
    memory="2 n h (k + v)",
    decode="2 h k v",
    state="h k v + (conv - 1) (h v + 2 g k)",
)


@dataclass(frozen=True, kw_only=True)
class Config(Recurring):
    """``groups`` of heads with one B and C each, a divisor of ``heads``; ``conv``: how many tokens the short
    convolution sees; ``bias`` is on the projections; ``eps`` is the output norm's, which norms each group
    alone.
    """

    groups: int = 1
    conv: int = 4
    bias: bool = False
    conv_bias: bool = True
    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1 or self.heads % self.groups:
            raise UserError(
                f"attention: {self.heads} heads cannot share {self.groups} groups of B and C evenly"
            )
        if self.conv < 1:
            raise UserError(
                "attention: the short convolution sees the token itself at least, conv must be 1 or more"
            )

    @property
    def channels(self) -> int:
        """How many numbers of a token are convolved: x, B and C, in this order."""
        return self.heads * self.values + 2 * self.groups * self.key_size

    @property
    def tail(self) -> int:
        return self.channels * (self.conv - 1)

    def build(self, width: int) -> nn.Module:
        from cutaway.attention.parts.mamba2 import Mamba2

        return Mamba2(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        value, key = self.heads * self.values, self.groups * self.key_size
        rows = {"value": value, "key": key, "query": key, "step": self.heads, "gate": value}
        shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (n, width) for name, n in rows.items()} | {
            "out.weight": (width, value)
        }
        if self.bias:
            shapes |= {f"{name}.bias": (n,) for name, n in rows.items()} | {"out.bias": (width,)}
        if self.conv_bias:
            shapes |= {"conv.bias": (self.channels,)}
        return shapes | {
            "conv.weight": (self.channels, self.conv),
            "fading.A_log": (self.heads,),
            "fading.dt_bias": (self.heads,),
            "D": (self.heads,),
            "norm": (value,),
        }
