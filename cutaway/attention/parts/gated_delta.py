"""Gated DeltaNet as a module; ``attention/gated_delta.py`` tells the mechanism."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.gated_delta import Config
from cutaway.attention.parts.chunks import delta
from cutaway.attention.parts.delta import unit
from cutaway.attention.parts.recurrent import Recurrent
from cutaway.attention.parts.softmax import cut, join
from cutaway.attention.parts.visibility import Places
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


class Forgetting(nn.Module):
    """log a = -dt exp(A_log) and dt = softplus(x + dt_bias): how long a token lasts sets how much it forgets
    (Mamba).

    It starts with exp(A_log) between 1 and 16 and steps between 0.001 and 0.1, so that heads remember from a
    few to a thousand tokens.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        dt = torch.empty(heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of this is dt

    def forward(self, x: Float[Tensor, "b t h"]) -> tuple[Float[Tensor, "b h t 1"], Float[Tensor, "b h t 1"]]:
        """log a and dt."""
        dt = F.softplus(widened(x) + widened(self.dt_bias)).transpose(1, 2)[..., None]
        return -dt * widened(self.A_log).exp()[:, None, None], dt


class GatedDeltaNet(nn.Module):
    """Taps ``q`` and ``k`` [b h t k] at length 1, ``v`` [b h t v], ``beta`` and ``log_a`` [b h t 1] how much
    is corrected and the logarithm of what is kept, ``memory`` [b h k v], ``mixed`` [b h t v].
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(width, config.groups * config.key_size, bias=False)
        self.key = nn.Linear(width, config.groups * config.key_size, bias=False)
        self.value = nn.Linear(width, config.heads * config.values, bias=False)
        self.beta = nn.Linear(width, config.heads, bias=False)
        self.forget = nn.Linear(width, config.heads, bias=False)
        self.fading = Forgetting(config.heads)
        self.gate = nn.Linear(width, config.heads * config.values, bias=False)
        self.conv = ShortConv(config.channels, config.conv, bias=False)
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
        heads, groups = self.config.heads, self.config.groups
        qkv = torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)
        qkv, tail = self.conv(qkv, places.pos, places.documents, in_order, state and state.get("tail"))
        key = groups * self.config.key_size
        q, k, v = F.silu(qkv).split((key, key, heads * self.config.values), dim=-1)
        q, k = (unit(cut(part, groups)).repeat_interleave(heads // groups, dim=1) for part in (q, k))
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(v, heads))
        beta = tap("beta", cut(self.beta(x), heads).sigmoid())
        log_a = tap("log_a", self.fading(self.forget(x))[0])
        scaled = q * q.shape[-1] ** -0.5
        mixed, memory = delta(scaled, k, v, beta, log_a, places, state and state.get("memory"))
        if state is not None:
            state.keep({"memory": memory, "tail": tail}, places.pos)
        normed = self.norm(tap("mixed", mixed))
        return self.out(join(tap("given", cut(F.silu(self.gate(x)), heads) * normed)))
