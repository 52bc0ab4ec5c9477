"""Linear attention as a module; ``attention/linear.py`` tells the mechanism."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.linear import Config
from cutaway.attention.parts.chunks import fade
from cutaway.attention.parts.recurrent import Recurrent
from cutaway.attention.parts.softmax import cut, join
from cutaway.attention.parts.visibility import Places
from cutaway.hooks import tap
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


def _taylor(x: Float[Tensor, "b h t k"]) -> Float[Tensor, "b h t f"]:
    x = x * x.shape[-1] ** -0.25
    squares = (x[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat((torch.ones_like(x[..., :1]), x, squares * 0.5**0.5), dim=-1)


FEATURES = {"elu": lambda x: F.elu(x) + 1, "relu": F.relu, "taylor": _taylor}


class LinearAttention(nn.Module):
    """Taps ``q`` and ``k`` [b h t f] as features, ``v`` [b h t v], ``memory`` [b h f v+1], ``mixed`` [b h t
    v].
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.feature = FEATURES[config.feature]
        self.query = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.key = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.value = nn.Linear(width, config.heads * config.values, bias=False)
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
        q = tap("q", self.feature(cut(self.query(x), heads)))
        k = tap("k", self.feature(cut(self.key(x), heads)))
        v = tap("v", cut(self.value(x), heads))
        one = torch.ones_like(v[..., :1])
        read, memory = fade(
            q, k, torch.cat((v, one), -1), torch.zeros_like(one), places, state and state.get("memory")
        )
        if state is not None:
            state.keep({"memory": memory}, places.pos)
        shares = torch.where(read[..., -1:] > 0, read[..., -1:], 1.0)  # who sees nothing has read zero
        mixed = read[..., :-1] / shares
        return self.out(join(tap("given", tap("mixed", mixed))))
