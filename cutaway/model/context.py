"""A longer context for a model that is trained further: its rotary positions slowed, its limit raised.

linear   position interpolation (2306.15595): every position is divided by the factor
yarn     YaRN (2309.00071): slow pairs are interpolated, fast ones kept, scores sharpened
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from cutaway.bounds import Bounded, Positive
from cutaway.errors import UserError
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.position.scaling import Linear, YaRN


@dataclass(frozen=True)
class ContextExtension(Bounded):
    """``factor`` times as many positions as the base holds."""

    kind: Literal["linear", "yarn"] = "yarn"
    factor: Positive = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor <= 1:
            raise UserError(f"context_extension.factor is {self.factor:g}; it must be more than 1")

    def extended(self, config: Decoder) -> Decoder:
        """The config with more positions. A layer that sees a window of tokens keeps its frequencies.

        Raises UserError for a model whose positions are not rotary, or are scaled already.
        """
        scaling = Linear(self.factor) if self.kind == "linear" else YaRN(self.factor, config.context)
        blocks = tuple(self._block(n, block, scaling) for n, block in enumerate(config.blocks))
        if blocks == config.blocks:
            raise UserError("context_extension: each layer of the base sees a window alone: none is extended")
        return replace(config, blocks=blocks, context=int(config.context * self.factor))

    def _block(self, n: int, block: Block, scaling: Linear | YaRN) -> Block:
        attention: Any = block.attention
        if not hasattr(attention, "visibility") or hasattr(attention, "window"):
            return block  # it holds no more tokens than before
        position = attention.position
        if not isinstance(position, rope.Config):
            raise UserError(f"context_extension: layer {n} of the base has no rotary positions to slow")
        if position.scaling is not None:
            raise UserError(
                f"context_extension: layer {n} of the base scales its positions already "
                f"({type(position.scaling).__name__}): start from a base that does not"
            )
        return replace(block, attention=replace(attention, position=replace(position, scaling=scaling)))
