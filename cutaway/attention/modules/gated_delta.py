"""The module of ``attention/gated_delta.py``, which has the equation and the config."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common.linear_recurrence import Call, LinearMixer, Mixed, delta
from cutaway.attention.common.softmax import cut
from cutaway.attention.gated_delta import Config
from cutaway.attention.modules.delta import unit
from cutaway.hooks import tap
from cutaway.layers.conv import Convs, ShortConv
from cutaway.layers.norm import widened
from cutaway.shapes import Float


class GatedDeltaNet(LinearMixer):
    """``q`` and ``k`` have norm 1. Also taps ``beta`` and ``log_a`` [b h t 1]."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.beta = nn.Linear(width, config.heads, bias=False)
        self.forget = nn.Linear(width, config.heads, bias=False)
        self.decay = Decay(config.heads)
        self.gate = nn.Linear(width, config.heads * config.values, bias=False)
        sizes = {"query": self.query, "key": self.key, "value": self.value}
        parts = {name: matrix.out_features for name, matrix in sizes.items()}
        whole = ShortConv(config.channels, config.conv, bias=False)
        self.conv = Convs(parts, config.conv) if config.apart else whole
        self.norm = config.norm.build(config.values)

    def mix(self, x: Float[Tensor, "b t d"], call: Call) -> Mixed:
        heads, groups = self.config.heads, self.config.groups
        (q, k, v), kept = self.convolved((self.query(x), self.key(x), self.value(x)), call)
        q, k = (unit(cut(part, groups)).repeat_interleave(heads // groups, dim=1) for part in (q, k))
        q, k, v = tap("q", q), tap("k", k), tap("v", cut(v, heads))
        beta = cut(self.beta(x), heads).sigmoid()
        beta = tap("beta", 2 * beta if self.config.negative else beta)
        log_a = tap("log_a", self.decay(self.forget(x))[0])
        scaled = q * q.shape[-1] ** -0.5
        z, kept["S"] = delta(scaled, k, v, beta, log_a, call.positions, call.past.get("S"))
        return z, kept


class Decay(nn.Module):
    """log a = -dt exp(A_log), dt = softplus(x + dt_bias): a longer step forgets more of S (Mamba).

    It starts with exp(A_log) between 1 and 16 and steps between 0.001 and 0.1, so that heads keep from a few
    to a thousand tokens. ``least``: a bound of dt from below; ``channels``: how many gates each head has.
    With a ``bound`` log a = -bound sigmoid(exp(A_log) (x + dt_bias)), which keeps a part of S whatever comes
    (Ling 3).
    """

    def __init__(
        self, heads: int, least: float | None = None, channels: int = 1, bound: float | None = None
    ) -> None:
        super().__init__()
        self.least, self.bound = least, bound
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        dt = torch.empty(heads * channels).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(dt.expm1().log())  # softplus of this is dt

    def forward(self, x: Float[Tensor, "b t m"]) -> tuple[Float[Tensor, "b h t n"], Float[Tensor, "b h t n"]]:
        """log a and dt of each head's n gates."""
        given = widened(x) + widened(self.dt_bias)
        if self.bound is not None:
            sharp = widened(self.A_log).exp()[:, None, None] * cut(given, len(self.A_log))
            return -self.bound * sharp.sigmoid(), sharp
        dt = cut(F.softplus(given), len(self.A_log))
        dt = dt if self.least is None else dt.clamp(min=self.least)
        return -dt * widened(self.A_log).exp()[:, None, None], dt
