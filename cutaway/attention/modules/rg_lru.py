"""The module of ``attention/rg_lru.py``, which has the equation and the config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common import scan
from cutaway.attention.common.softmax import cut, join
from cutaway.attention.common.visibility import Positions
from cutaway.attention.rg_lru import Config
from cutaway.attention.state.recurrent import Recurrent
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv
from cutaway.layers.mlp import ACTIVATIONS
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation
from cutaway.shapes import Float

SHARPNESS = 8.0  # the paper's c


class Gate(nn.Module):
    """sigmoid(W x + b) with a matrix for each head."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, size, size).normal_(std=0.1 * size**-0.5))
        self.bias = nn.Parameter(torch.zeros(heads * size))

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        parts = x.unflatten(-1, self.weight.shape[:2])
        return (torch.einsum("bthi,hio->btho", parts, self.weight).flatten(2) + self.bias).sigmoid()


class GatedUnit(nn.Module):
    """Taps ``q`` (act(W_y u)), ``k`` (i), ``v`` (x), ``z`` (h) and ``out_input``, which W_o multiplies
    [b h t n], ``S`` [b h 1 n], the state after the last token, and ``log_a`` [b h t n].
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.activation: Any = ACTIVATIONS[config.activation]
        self.value = nn.Linear(width, config.channels)
        self.gate = nn.Linear(width, config.channels)
        self.conv = ShortConv(config.channels, config.conv, bias=True)
        size = config.channels // config.heads
        self.input_gate, self.recurrent_gate = Gate(config.heads, size), Gate(config.heads, size)
        # A channel whose r is 1 starts with a between 0.9 and 0.999.
        kept = torch.empty(config.channels).uniform_(0.9, 0.999).log() / -SHARPNESS
        self.decay = nn.Parameter(kept.expm1().log())
        self.out = nn.Linear(config.channels, width)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: Recurrent | None,
    ) -> Float[Tensor, "b t d"]:
        heads = self.config.heads
        tail, S = (None, None) if state is None else (state.get("tail"), state.get("S"))
        q, v = tap("q", cut(self.activation(self.gate(x)), heads)), self.value(x)
        v, tail = self.conv(v, positions.pos, positions.documents, in_order, tail)
        v = join(tap("v", cut(v, heads)))
        h, S = self._scanned(v, positions, S)
        if state is not None:
            state.keep({"tail": tail, "S": S}, positions.pos)
        z = tap("z", cut(h.to(x.dtype), heads))
        return self.out(join(tap("out_input", q * z)))

    def _scanned(
        self, v: Float[Tensor, "b t c"], positions: Positions, S: Float[Tensor, "b c"] | None
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b c"]]:
        """The state after each token, and after the last."""
        first = (positions.pos == 0)[..., None]
        log_a = -SHARPNESS * widened(self.recurrent_gate(v)) * F.softplus(widened(self.decay))
        log_a = join(tap("log_a", cut(log_a, self.config.heads)))
        # At position 0 nothing came before; the root, whose gradient at 0 has no bound, is not taken there.
        root = (-torch.expm1(2 * log_a.masked_fill(first, -1.0))).sqrt().masked_fill(first, 1.0)
        k = join(tap("k", cut(self.input_gate(v), self.config.heads)))
        a, written = log_a.exp().masked_fill(first, 0.0), root * widened(v * k)
        last = a.new_zeros(a.shape[0], a.shape[2]) if S is None else S
        read = []
        for part in scan.chunks(v.shape[1]):
            read.append(scan.states(*scan.masked(a[:, part], written[:, part], positions, part), last))
            last = read[-1][:, -1]
        kept = tap("S", last.unflatten(-1, (self.config.heads, 1, -1)))
        return torch.cat(read, dim=1), kept.flatten(1)
