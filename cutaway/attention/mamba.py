"""Mamba (2312.00752): a state space model whose steps depend on the token, the selective scan.

    h = exp(dt A) h + dt B x        y = C' h + D x       A = -exp(A_log), one number a channel and state
    dt = softplus(W_dt W_r x + dt_bias), B = W_B x, C = W_C x       x = silu(conv(W_x u))
    out = W_o (y silu(W_z u))

u is the block's input. Each channel has a small state of its own, ``state_size`` numbers that decay at
different rates; B says what of a token is written, C what is read, and they are the same for all channels. A
long step dt writes much and forgets much, a short one skips the token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common import scan
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.mixer import LayerState, weight_shapes
from cutaway.attention.common.visibility import Positions
from cutaway.attention.state.recurrent import Recurrent
from cutaway.bounds import Bounded, Count
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation
from cutaway.shapes import Float

COST = Cost(  # of the scan by doubling, 5 times for chunks of 32
    prefill="13 n channels state_size",
    memory="n channels state_size",
    decode="3 channels state_size",
    state="channels state_size + (conv - 1) channels",
)
USUAL = {"channels": "2 d", "rank": "(d + 15) / 16"}


@dataclass(frozen=True, kw_only=True)
class Config(Bounded):
    """``channels`` with ``state_size`` numbers each; ``conv``: tokens that the convolution sees.

    ``rank``: the size between the two matrices of the step; ``bias`` is on the projections of the block's
    input and on the last. ``norm`` is of what the step, B and C are made of, each alone (Jamba), without
    weights in Falcon Mamba.
    """

    reads: ClassVar[Literal["past", "all", "memory"]] = "past"
    heads: ClassVar[int] = 1
    position: ClassVar[None] = None

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

    def build(self, width: int) -> Mamba:
        return Mamba(self, width)

    weights = weight_shapes

    def state(self) -> LayerState:
        return Recurrent()

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token: none."""
        return 0

    def state_bytes(self, entry: int) -> int:
        """Bytes of one sequence's state in this layer, however long it is, for numbers of ``entry`` bytes.

        The scan's state is kept in float32 at least: a sum over a long text needs the room.
        """
        return self.channels * (self.state_size * max(entry, 4) + (self.conv - 1) * entry)


class Mamba(nn.Module):
    """Taps ``q`` (C), ``k`` (B), ``v`` (x), ``dt``, ``z`` (y) and ``out_input``, which W_o multiplies, as one
    head [b 1 t n], and ``S`` [b 1 c n], the state after the last token.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        channels, size = config.channels, config.state_size
        self.value = nn.Linear(width, channels, config.bias)
        self.gate = nn.Linear(width, channels, config.bias)
        self.conv = ShortConv(channels, config.conv, config.conv_bias)
        self.step_down = nn.Linear(channels, config.rank, bias=False)
        self.key = nn.Linear(channels, size, bias=False)
        self.query = nn.Linear(channels, size, bias=False)
        self.step = nn.Linear(config.rank, channels, bias=False)
        of = config.norm
        self.step_norm = nn.Identity() if of is None else of.build(config.rank)
        self.key_norm = nn.Identity() if of is None else of.build(size)
        self.query_norm = nn.Identity() if of is None else of.build(size)
        # Steps start between 0.001 and 0.1, and the n-th number of a state decays n times as fast (S4D).
        dt = torch.empty(channels).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(dt.expm1().log())  # softplus of this is dt
        self.A_log = nn.Parameter(torch.arange(1.0, size + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out = nn.Linear(channels, width, config.bias)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: Recurrent | None,
    ) -> Float[Tensor, "b t d"]:
        tail, S = (None, None) if state is None else (state.get("tail"), state.get("S"))
        gate, v = F.silu(self.gate(x)), self.value(x)
        v, tail = self.conv(v, positions.pos, positions.documents, in_order, tail)
        v = _tapped("v", F.silu(v))
        y, S = self._scanned(v, positions, S)
        if state is not None:
            state.keep({"tail": tail, "S": S}, positions.pos)
        z = _tapped("z", (y + self.D * v).to(x.dtype))
        return self.out(_tapped("out_input", z * gate))

    def _scanned(
        self, v: Float[Tensor, "b t c"], positions: Positions, S: Float[Tensor, "b c n"] | None
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b c n"]]:
        """What each token reads of the states, and the states after the last."""
        k, q = _tapped("k", self.key_norm(self.key(v))), _tapped("q", self.query_norm(self.query(v)))
        step = self.step(self.step_norm(self.step_down(v)))
        dt = _tapped("dt", F.softplus(widened(step) + widened(self.dt_bias)))
        A, wide, k, q = -widened(self.A_log).exp(), widened(v), widened(k), widened(q)
        S = wide.new_zeros(v.shape[0], *A.shape) if S is None else S
        reads = []
        for part in scan.chunks(v.shape[1]):
            a = (dt[:, part, :, None] * A).exp()
            written = (dt[:, part] * wide[:, part])[..., None] * k[:, part, None]
            states = scan.states(*scan.masked(a, written, positions, part), S)
            reads.append((states @ q[:, part, :, None])[..., 0])
            S = states[:, -1]
        return torch.cat(reads, dim=1), tap("S", S[:, None])[:, 0]


def _tapped(name: str, x: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
    """A value of the only head."""
    return tap(name, x[:, None])[:, 0]
