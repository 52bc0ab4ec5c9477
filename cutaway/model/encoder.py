"""The encoder: token ids in, a vector for each token out, with all of the text in view (1810.04805).

    x = norm(token + position + segment)        for each block: x = block(x)

A decoder's norms come before each half of a block; these come after it, as in the first transformer
(1706.03762). Nothing bypasses them, so the last block's output is the result. Newer encoders have a decoder's
blocks, which rotate queries and keys, and a norm at the end (ModernBERT, 2412.13663).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.attention.common.visibility import Positions
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.model import block, block_config
from cutaway.model import config as conf
from cutaway.position.rope import RotaryEmbedding, Rotation
from cutaway.shapes import Bool, Float, Int

KEPT = 1 - 0.15 * 0.8  # of a text's tokens while ESM was trained: 80% of 15% were masked (2206.13517)


class Block(nn.Module):
    """middle = norm(x + attention(x)); out = norm(middle + mlp(middle)). Taps ``middle`` and ``out``."""

    def __init__(self, config: block_config.Block, width: int) -> None:
        super().__init__()
        self.attention = config.attention.build(width)
        self.attention_norm = config.norm.build(width)
        assert config.mlp is not None  # the config checks it
        self.mlp = config.mlp.build(width)
        self.mlp_norm = config.norm.build(width)

    def forward(
        self, x: Float[Tensor, "b t d"], positions: Positions, rotation: Rotation | None, in_order: bool
    ) -> Float[Tensor, "b t d"]:
        attended = self.attention(x, positions, rotation, in_order, None)
        middle = tap("middle", self.attention_norm(x + attended))
        return tap("out", self.mlp_norm(middle + self.mlp(middle)))


class Convolution(nn.Module):
    """norm(x + act(conv(embeddings))): near embeddings beside the first layer's output."""

    def __init__(self, config: conf.Convolution, width: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, config.kernel, padding=config.reach)
        self.activation = {"tanh": torch.tanh, "gelu": F.gelu, "relu": F.relu}[config.activation]
        self.norm = norm.build(width)

    def forward(
        self, x: Float[Tensor, "b t d"], embedded: Float[Tensor, "b t d"], pos: Int[Tensor, "b t"]
    ) -> Float[Tensor, "b t d"]:
        near = embedded.masked_fill((pos < 0)[..., None], 0.0)  # padding is as what is beyond a text: nothing
        return self.norm(x + self.activation(self.conv(near.mT).mT))


class Encoder(nn.Module):
    """A pure function of its config. Taps ``embed`` [b t d] and each block's values."""

    def __init__(self, config: conf.Encoder) -> None:
        super().__init__()
        self.config = config
        own = config.embedding_width or config.width
        self.embedding = nn.Embedding(config.vocab, own)
        self.position = config.position and config.position.build(own)
        self.segment = nn.Embedding(config.segments, own) if config.segments else None
        self.task = nn.Embedding(config.tasks, own) if config.tasks else None
        self.norm = config.norm.build(own) if config.embedding_norm else nn.Identity()
        self.projection = nn.Linear(own, config.width) if config.embedding_width else nn.Identity()
        kind = block.Block if config.norm_first else Block
        self.blocks = nn.ModuleList(kind(each, config.width) for each in config.blocks)
        own_conv = config.convolution
        self.convolution = own_conv and Convolution(own_conv, config.width, config.norm)
        if config.one_relative:
            block.share_relative(self.blocks)
        self.last_norm = config.norm.build(config.width) if config.norm_first else nn.Identity()
        positions = [each.attention.position for each in config.blocks]
        distinct = list(dict.fromkeys(each for each in positions if each is not None))
        self.rotary = [RotaryEmbedding(each) for each in distinct]
        self.rotary_of_block = [None if each is None else distinct.index(each) for each in positions]

    def forward(
        self,
        ids: Int[Tensor, "b t"],
        pos: Int[Tensor, "b t"],
        segments: Int[Tensor, "b t"] | None = None,
        in_order: bool | None = None,
    ) -> Float[Tensor, "b t d"]:
        """The last block's output, normed where blocks norm first; ``pos`` are absolute, -1 for padding.

        ``segments``: the part of the text that a token is in, the first by default.

        ``in_order`` promises that every row is 0, 1, 2, ..., so that no mask is needed; None checks.
        """
        if in_order is None:
            in_order = bool((pos == torch.arange(pos.shape[1], device=pos.device)).all())
        x = embedded = tap("embed", self.projection(self.norm(self._embedded(ids, pos, segments))))
        positions = Positions(pos, shared={})
        rotations = [rotary.rotation(pos) for rotary in self.rotary]
        for n, number in enumerate(self.config.layers):
            each, which = self.blocks[number], self.rotary_of_block[number]
            rotation = None if which is None else rotations[which]
            if isinstance(each, block.Block):
                x, _ = each(x, positions, rotation, in_order, None)
            else:
                x = each(x, positions, rotation, in_order)
            if n == 0 and self.convolution is not None:
                x = self.convolution(x, embedded, pos)
        return self.last_norm(x)

    def _embedded(
        self, ids: Int[Tensor, "b t"], pos: Int[Tensor, "b t"], segments: Int[Tensor, "b t"] | None
    ) -> Float[Tensor, "b t d"]:
        x = self.embedding(ids)
        if self.config.mask is not None:
            x = _without(ids == self.config.mask, x, pos)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        if self.position is not None:
            x = x + self.position(pos.clamp(min=0) + self.config.offset)
        if self.task is not None:
            x = x + self.task.weight[0]
        if self.segment is None:
            return x
        return x + (self.segment.weight[0] if segments is None else self.segment(segments))


def _without(
    masked: Bool[Tensor, "b t"], x: Float[Tensor, "b t d"], pos: Int[Tensor, "b t"]
) -> Float[Tensor, "b t d"]:
    """Zeros for masked tokens; the others times what training kept of a text over what this one keeps."""
    real = pos >= 0
    kept = 1 - (masked & real).sum(1) / real.sum(1)
    return x.masked_fill(masked[..., None], 0.0) * KEPT / kept[:, None, None]
