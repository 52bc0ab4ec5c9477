"""Softmax attention behind gates; ``attention/gated.py`` tells the mechanism."""

from torch import Tensor, nn

from cutaway.attention.parts.heads import Heads
from cutaway.attention.parts.mixer import Memory
from cutaway.attention.parts.softmax import SoftmaxAttention, cut, join
from cutaway.attention.parts.visibility import Places
from cutaway.hooks import tap
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


class GatedAttention(SoftmaxAttention):
    """Taps ``gate`` [b t h*v], from 0 to 1, and ``given`` [b h t v], what it lets through, besides what every
    softmax attention taps.
    """

    def __init__(self, config: Heads, width: int) -> None:
        super().__init__(config, width)
        self.gate = nn.Linear(width, config.heads * config.values, config.bias)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        places: Places,
        rotation: Rotation | None,
        in_order: bool,
        state: Memory | None,
    ) -> Float[Tensor, "b t d"]:
        gate = tap("gate", self.gate(x).sigmoid())
        through = gate * self.gathered(x, places, rotation, in_order, state)
        return self.out(join(tap("given", cut(through, self.config.heads))))
