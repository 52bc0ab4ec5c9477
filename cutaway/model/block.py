"""A block: attention moves information between tokens, the MLP works on each token alone.

Both add to the residual stream.
"""

import torch
from torch import Tensor, nn

from cutaway.attention.common.mixer import LayerState
from cutaway.attention.common.visibility import Positions
from cutaway.hooks import tap
from cutaway.layers.moe import MoE, Routing
from cutaway.model.config import Block as Config
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


class Block(nn.Module):
    """middle = x + attention(norm(x)); out = middle + mlp(norm(middle)).

    Taps ``middle`` and ``out`` [b t d]: the residual stream after each half. A mixture of experts also
    returns its routing.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.attention_norm = config.norm.build(width)
        self.attention = config.attention.build(width)
        self.attention_post_norm = config.norm.build(width) if config.post_norm else nn.Identity()
        self.mlp_norm = config.norm.build(width)
        self.mlp = config.mlp.build(width)
        self.mlp_post_norm = config.norm.build(width) if config.post_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: LayerState | None,
    ) -> tuple[Float[Tensor, "b t d"], Routing | None]:
        attended = self.attention(_cast_once(self.attention_norm(x)), positions, rotation, in_order, state)
        middle = tap("middle", x + self.attention_post_norm(attended))
        normed, routing = _cast_once(self.mlp_norm(middle)), None
        if isinstance(self.mlp, MoE):
            output, routing = self.mlp(normed, positions.pos)
        else:
            output = self.mlp(normed)
        return tap("out", middle + self.mlp_post_norm(output)), routing


def _cast_once(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in autocast's type: otherwise each projection casts x, and autograd keeps each copy."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
