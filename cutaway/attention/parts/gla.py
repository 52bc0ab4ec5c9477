"""Gated linear attention as a module; ``attention/gla.py`` tells the mechanism."""

from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.gla import Config
from cutaway.attention.parts.chunks import fade
from cutaway.attention.parts.recurrent import Recurrent
from cutaway.attention.parts.softmax import cut, join
from cutaway.attention.parts.visibility import Places
from cutaway.hooks import tap
from cutaway.layers.norm import widened
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


class GatedLinearAttention(nn.Module):
    """Taps ``q`` and ``k`` [b h t k], ``log_a`` [b h t k] the logarithm of the gates, ``v``, ``mixed`` and
    ``given`` [b h t v], ``memory`` [b h k v].
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.key = nn.Linear(width, config.heads * config.key_size, bias=False)
        self.value = nn.Linear(width, config.heads * config.values, bias=False)
        self.forget_down = nn.Linear(width, config.rank, bias=False)
        self.forget_up = nn.Linear(config.rank, config.heads * config.key_size)
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
        q, k = tap("q", cut(self.query(x), heads)), tap("k", cut(self.key(x), heads))
        v = tap("v", cut(self.value(x), heads))
        forget = widened(cut(self.forget_up(self.forget_down(x)), heads))
        log_a = tap("log_a", F.logsigmoid(forget) / self.config.temperature)
        mixed, memory = fade(q * q.shape[-1] ** -0.5, k, v, log_a, places, state and state.get("memory"))
        if state is not None:
            state.keep({"memory": memory}, places.pos)
        normed = self.norm(tap("mixed", mixed))
        return self.out(join(tap("given", cut(F.silu(self.gate(x)), heads) * normed)))
