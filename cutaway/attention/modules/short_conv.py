"""The module of ``attention/short_conv.py``, which has the equation and the config."""

from __future__ import annotations

from torch import Tensor, nn

from cutaway.attention.common.visibility import Positions
from cutaway.attention.short_conv import Config
from cutaway.attention.state.recurrent import Recurrent
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv as Convolution
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


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
