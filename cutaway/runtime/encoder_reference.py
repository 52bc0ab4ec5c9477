"""An encoder computed with numpy, text by text: to the bit what native/runtime/encoder.cpp computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Encoder as Config
from cutaway.quantization import formats
from cutaway.runtime import attention, encoder
from cutaway.runtime.numpy_layers import Layers, rotated
from cutaway.weights.named_tensors import Tensors


class ReferenceEncoder:
    """What ``EncoderEngine`` computes, slower, and anywhere."""

    together = 512
    pads = False

    def __init__(self, config: Config, tensors: Tensors) -> None:
        reason = encoder.unsupported_reason(config, tensors)
        if reason is not None:
            raise UserError(f"The runtime does not run this model, because {reason}: use engine='pytorch'")
        self.config, self._tensors, self._layers = config, tensors, Layers(tensors)

    def encode(
        self, rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None
    ) -> list[np.ndarray]:
        """float32 [t d] of each text's ids: the vectors of its tokens."""
        given = [None] * len(rows) if segments is None or not self.config.segments else segments
        return [self._text(np.asarray(row), part) for row, part in zip(rows, given, strict=True)]

    def _text(self, ids: np.ndarray, segments: Sequence[int] | None) -> np.ndarray:
        x = self._embedded(ids, segments)
        for n in self.config.layers:
            x = self._layer(n, x)
        return self._layers.norm(x, "last_norm", self.config.norm if self.config.norm_first else None)

    def _embedded(self, ids: np.ndarray, segments: Sequence[int] | None) -> np.ndarray:
        config, tensors = self.config, self._tensors
        table = tensors["embedding.weight"]
        x = np.concatenate([formats.unpack(table.rows(slice(id, id + 1))) for id in ids.tolist()])
        kept = encoder.kept(config, [ids.tolist()])
        if kept is not None:
            x = x * np.where(ids == config.mask, np.float32(0), kept)[:, None]
        x = x * np.float32(config.embedding_scale)
        own = encoder.positions(config, tensors)
        x = x if own is None else x + own[: len(ids)]
        of_parts = encoder.segments(config, tensors)
        if of_parts is not None:
            x = x + of_parts[[0] * len(ids) if segments is None else list(segments)]
        x = self._layers.norm(x, "norm", config.norm if config.embedding_norm else None)
        return self._layers.matrix("projection", x) if config.embedding_width else x

    def _layer(self, n: int, x: np.ndarray) -> np.ndarray:
        block, path = self.config.blocks[n], f"blocks.{n}"
        assert isinstance(block.mlp, MLP)  # unsupported_reason has looked
        names = encoder.norms(self.config, block)

        def normed(x: np.ndarray, what: str) -> np.ndarray:
            return self._layers.norm(x, f"{path}.{names[what]}", block.norm) if what in names else x

        mixed = self._attention(block, n, normed(x, "attention_norm"))
        x = normed(x + normed(mixed, "attention_post_norm"), "attention_sum_norm")
        hidden = self._layers.mlp(block.mlp, f"{path}.mlp", normed(x, "mlp_norm"))
        return normed(x + normed(hidden, "mlp_post_norm"), "mlp_sum_norm")

    def _attention(self, block: Block, n: int, x: np.ndarray) -> np.ndarray:
        of: Any = block.attention
        path, count = f"blocks.{n}.attention", len(x)
        query = self._heads(of, path, "query", x, of.heads) * np.float32(encoder.scale(of))
        key = self._heads(of, path, "key", x, of.groups)
        value = self._layers.matrix(f"{path}.value", x).reshape(count, of.groups, -1)
        seen = attention.Sides(of.reach, self._relative(n, count))
        mixed = attention.attend(query, key, value, np.arange(count), softcap=of.softcap, sides=seen)
        return self._layers.matrix(f"{path}.out", mixed.reshape(count, -1))

    def _heads(self, of: Any, path: str, name: str, x: np.ndarray, heads: int) -> np.ndarray:
        """Queries or keys [t h k], normed and rotated."""
        rows = self._layers.matrix(f"{path}.{name}", x)
        if of.qk_norm and of.qk_norm_over == "width":
            rows = self._layers.norm(rows, f"{path}.{name}_norm", of.qk_norm)
        rows = rows.reshape(len(x), heads, -1)
        if of.qk_norm and of.qk_norm_over != "width":
            rows = self._layers.norm(rows, f"{path}.{name}_norm", of.qk_norm)
        return rotated(rows, np.arange(len(x)), of.position)

    def _relative(self, n: int, count: int) -> np.ndarray | None:
        """What the scores gain, by query and key: float32 [h t s]."""
        table = encoder.relative(self.config, n, self._tensors)
        if table is None:
            return None
        at = np.arange(count)
        return table[:, self.config.context - 1 + at[None] - at[:, None]]
