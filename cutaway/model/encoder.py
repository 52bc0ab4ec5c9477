"""The encoder: token ids in, a vector for each token out, with all of the text in view (1810.04805).

    x = norm(token + position + segment)        for each block: x = block(x)

A decoder's norms come before each half of a block; these come after it, as in the first transformer
(1706.03762). Nothing bypasses them, so the last block's output is the result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.common.visibility import Positions
from cutaway.hooks import tap
from cutaway.model import config as conf
from cutaway.shapes import Float, Int


class Block(nn.Module):
    """middle = norm(x + attention(x)); out = norm(middle + mlp(middle)). Taps ``middle`` and ``out``."""

    def __init__(self, config: conf.Block, width: int) -> None:
        super().__init__()
        self.attention = config.attention.build(width)
        self.attention_norm = config.norm.build(width)
        self.mlp = config.mlp.build(width)
        self.mlp_norm = config.norm.build(width)

    def forward(
        self, x: Float[Tensor, "b t d"], positions: Positions, in_order: bool
    ) -> Float[Tensor, "b t d"]:
        attended = self.attention(x, positions, None, in_order, None)
        middle = tap("middle", self.attention_norm(x + attended))
        return tap("out", self.mlp_norm(middle + self.mlp(middle)))


class Encoder(nn.Module):
    """A pure function of its config. Taps ``embed`` [b t d] and each block's values."""

    def __init__(self, config: conf.Encoder) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.position = config.position.build(config.width)
        self.segment = nn.Embedding(config.segments, config.width)
        self.norm = config.norm.build(config.width)
        self.blocks = nn.ModuleList(Block(block, config.width) for block in config.blocks)

    def forward(
        self,
        ids: Int[Tensor, "b t"],
        pos: Int[Tensor, "b t"],
        segments: Int[Tensor, "b t"] | None = None,
        in_order: bool | None = None,
    ) -> Float[Tensor, "b t d"]:
        """The last block's output; ``pos`` are absolute positions, -1 for padding.

        ``segments``: the part of the text that a token is in, the first by default.

        ``in_order`` promises that every row is 0, 1, 2, ..., so that no mask is needed; None checks.
        """
        if in_order is None:
            in_order = bool((pos == torch.arange(pos.shape[1], device=pos.device)).all())
        kind = self.segment.weight[0] if segments is None else self.segment(segments)
        x = tap("embed", self.norm(self.embedding(ids) + self.position(pos.clamp(min=0)) + kind))
        positions = Positions(pos)
        for block in self.blocks:
            x = block(x, positions, in_order)
        return x
