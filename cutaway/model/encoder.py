"""The encoder: token ids in, a vector for each token out, made with all of the text in view (1810.04805).

    x = norm(token + position + segment)        for each block: x = block(x)

Where a decoder's norms stand before each half of a block, these stand behind it, as in the first transformer
(1706.03762): nothing runs past them, so the last block's word is the result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.parts.visibility import Places
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

    def forward(self, x: Float[Tensor, "b t d"], places: Places, in_order: bool) -> Float[Tensor, "b t d"]:
        read = self.attention(x, places, None, in_order, None)
        middle = tap("middle", self.attention_norm(x + read))
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
        """The vectors of the last block. ``pos`` are absolute positions, -1 for padding; ``segments`` say in
        which part of the text a token is, the first where they are not given.

        ``in_order`` promises that every row is 0, 1, 2, ..., so that nothing need be masked; None looks.
        """
        if in_order is None:
            in_order = bool((pos == torch.arange(pos.shape[1], device=pos.device)).all())
        kind = self.segment.weight[0] if segments is None else self.segment(segments)
        x = tap("embed", self.norm(self.embedding(ids) + self.position(pos.clamp(min=0)) + kind))
        places = Places(pos)
        for block in self.blocks:
            x = block(x, places, in_order)
        return x
