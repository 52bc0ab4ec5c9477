"""Retention as a module; ``attention/retention.py`` tells the mechanism."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.parts.chunks import fade
from cutaway.attention.parts.recurrent import Recurrent
from cutaway.attention.parts.softmax import cut, join
from cutaway.attention.parts.visibility import Places
from cutaway.attention.retention import Config
from cutaway.hooks import tap
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation, rotate
from cutaway.shapes import Float


class Retention(nn.Module):
    """Taps ``q`` and ``k`` [b h t k] turned, ``v``, ``mixed`` and ``given`` [b h t v], and ``memory``
    [b h k v].
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.log_gamma = [math.log1p(-(2.0 ** (-5 - h))) for h in range(config.heads)]
        self.query = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.key = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.value = nn.Linear(width, config.heads * config.values, bias=False)
        self.gate = nn.Linear(width, config.heads * config.values, bias=False)
        self.norm = config.norm.build(config.values)
        self.out = nn.Linear(config.heads * config.values, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        places: Places,
        rotation: Rotation | None,
        in_order: bool,
        state: Recurrent | None,
    ) -> Float[Tensor, "b t d"]:
        heads = self.config.heads
        q, k = cut(self.query(x), heads), cut(self.key(x), heads)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k = tap("q", q), tap("k", k)
        v = tap("v", cut(self.value(x), heads))
        log_a = widened(v).new_tensor(self.log_gamma)[None, :, None, None].expand(*v.shape[:3], 1)
        mixed, memory = fade(q * q.shape[-1] ** -0.5, k, v, log_a, places, state and state.get("memory"))
        if state is not None:
            state.keep({"memory": memory}, places.pos)
        normed = self.norm(tap("mixed", mixed))
        return self.out(join(tap("given", cut(F.silu(self.gate(x)), heads) * normed)))
