"""The module of ``attention/mamba.py``, which has the equation and the config."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common import scan
from cutaway.attention.common.visibility import Positions
from cutaway.attention.mamba import Config
from cutaway.attention.state.recurrent import Recurrent
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


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
