"""DeltaNet as a module; ``attention/delta.py`` tells the mechanism."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.delta import Config
from cutaway.attention.parts.chunks import delta
from cutaway.attention.parts.recurrent import Recurrent
from cutaway.attention.parts.softmax import cut, join
from cutaway.attention.parts.visibility import Places
from cutaway.hooks import tap
from cutaway.layers.conv import ShortConv
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


def unit(x: Float[Tensor, "... k"]) -> Float[Tensor, "... k"]:
    """x at length 1; a vector near zero stays near zero."""
    wide = widened(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


class DeltaNet(nn.Module):
    """Taps ``q`` and ``k`` [b h t k] at length 1, ``v`` [b h t v], ``beta`` [b h t 1] how much of the
    memory's mistake is corrected, ``memory`` [b h k v], ``mixed`` and ``given`` [b h t v].
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.key = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.value = nn.Linear(width, config.heads * config.values, bias=False)
        self.beta = nn.Linear(width, config.heads, bias=False)
        self.conv = ShortConv(config.channels, config.conv, bias=False) if config.conv else None
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
        heads, key = self.config.heads, self.config.heads * self.config.key_size
        qkv, kept = torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1), {}
        if self.conv is not None:
            qkv, kept["tail"] = self.conv(
                qkv, places.pos, places.documents, in_order, state and state.get("tail")
            )
        q, k, v = (
            cut(part, heads) for part in F.silu(qkv).split((key, key, qkv.shape[-1] - 2 * key), dim=-1)
        )
        q, k, v = tap("q", unit(q)), tap("k", unit(k)), tap("v", v)
        beta = tap("beta", cut(self.beta(x), heads).sigmoid())
        scaled, open_ = q * q.shape[-1] ** -0.5, torch.zeros_like(beta)
        mixed, kept["memory"] = delta(scaled, k, v, beta, open_, places, state and state.get("memory"))
        if state is not None:
            state.keep(kept, places.pos)
        return self.out(join(tap("given", self.norm(tap("mixed", mixed)))))
