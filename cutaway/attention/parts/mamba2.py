"""Mamba 2 as a module; ``attention/mamba2.py`` tells the mechanism."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.mamba2 import Config
from cutaway.attention.parts.chunks import fade
from cutaway.attention.parts.gated_delta import Forgetting
from cutaway.attention.parts.recurrent import Recurrent
from cutaway.attention.parts.softmax import cut, join
from cutaway.attention.parts.visibility import Places
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


class Mamba2(nn.Module):
    """Taps ``q`` (C) and ``k`` (B) [b h t k], ``v`` (x) [b h t v], ``log_a`` and ``dt`` [b h t 1], ``memory``
    [b h k v], ``mixed`` [b h t v] with what D added, ``given`` [b h t v].
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.value = nn.Linear(width, config.heads * config.values, config.bias)
        self.key = nn.Linear(width, config.groups * config.key_size, config.bias)
        self.query = nn.Linear(width, config.groups * config.key_size, config.bias)
        self.step = nn.Linear(width, config.heads, config.bias)
        self.gate = nn.Linear(width, config.heads * config.values, config.bias)
        self.conv = ShortConv(config.channels, config.conv, config.conv_bias)
        self.fading = Forgetting(config.heads)
        self.D = nn.Parameter(torch.ones(config.heads))
        self.norm = nn.Parameter(torch.ones(config.heads * config.values))
        self.out = nn.Linear(config.heads * config.values, width, config.bias)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        places: Places,
        rotation: Rotation | None,
        in_order: bool,
        state: Recurrent | None,
    ) -> Float[Tensor, "b t d"]:
        heads, groups = self.config.heads, self.config.groups
        vkq = torch.cat((self.value(x), self.key(x), self.query(x)), dim=-1)
        vkq, tail = self.conv(vkq, places.pos, places.documents, in_order, state and state.get("tail"))
        key = groups * self.config.key_size
        v, k, q = F.silu(vkq).split((heads * self.config.values, key, key), dim=-1)
        q, k = (cut(part, groups).repeat_interleave(heads // groups, dim=1) for part in (q, k))
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(v, heads))
        log_a, dt = self.fading(self.step(x))
        log_a, dt = tap("log_a", log_a), tap("dt", dt)
        read, memory = fade(q, k, dt * v, log_a, places, state and state.get("memory"))
        if state is not None:
            state.keep({"memory": memory, "tail": tail}, places.pos)
        mixed = tap("mixed", (read + self.D[:, None, None] * v).to(x.dtype))
        normed = self._normed(join(mixed) * F.silu(self.gate(x)))
        return self.out(join(tap("given", cut(normed, heads))))

    def _normed(self, y: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        """Each group at a root mean square of 1, then each channel weighed."""
        wide = widened(y).unflatten(-1, (self.config.groups, -1))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.eps)
        return (wide.flatten(-2) * self.norm).to(y.dtype)
