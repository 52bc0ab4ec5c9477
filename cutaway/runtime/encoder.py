"""An encoder on the CPU, from its packed weights: texts in, a vector for each of their tokens out.

Texts of different lengths are one list of tokens, so that no padding is computed and a text's vectors have
the same bits alone and beside any others. Matrices are those of the decoder's runtime; attention reads keys
and values of floats, to both sides. What the kernels do not know is refused here, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

from cutaway.attention import bidirectional
from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Encoder as Config
from cutaway.model.kinds import kind_of
from cutaway.native import encoder as native
from cutaway.native import packed_product, structures
from cutaway.native.quant import LAYOUTS
from cutaway.position import alibi, learned, rope
from cutaway.position.scaling import GROWING
from cutaway.quantization import formats
from cutaway.runtime.block_numbers import alibi_of
from cutaway.runtime.packed import Packing, aligned
from cutaway.weights.named_tensors import Tensors

KEPT = 1 - 0.15 * 0.8  # of a text's tokens while ESM was trained: 80% of 15% were masked (2206.13517)
FARTHEST = 1 << 17  # positions: sinusoids, and what scores gain by distance, are computed for all when packed
HEADS, NEURONS = ("query", "key", "value", "out"), ("gate", "up", "down")


def unsupported_reason(config: Config, tensors: Tensors) -> str | None:
    """Why the runtime cannot run this encoder, in words that follow "because"; None where it can."""
    if config.convolution is not None:
        return "it has a convolution beside its first layer"
    tables = config.sines or any(getattr(block.attention, "relative", None) for block in config.blocks)
    if tables and config.context > FARTHEST:
        return f"the tables of its positions end at {FARTHEST:,}, and it reads {config.context:,} tokens"
    for n, block in enumerate(config.blocks):
        reason = _of_block(block, config.context)
        if reason is not None:
            return f"block {n}: {reason}"
    for name in matrices(config):
        if (type := tensors.later(name).type) not in packed_product.TYPES:
            return f"the weight {name} is stored as {type}"
    if (type := tensors.later("embedding.weight").type) not in LAYOUTS:
        return f"the table embedding.weight is stored as {type}"
    return None


def _of_block(block: Block, context: int) -> str | None:
    of: Any = block.attention
    if type(of) is not bidirectional.Config:
        return f"{kind_of(of)} attention has no kernel for encoders"
    odd = block.parallel or block.residual != 1 or block.beside or block.per_layer or block.shared
    if odd or block.scaled or block.streams or block.laurel:
        return "its halves are put together in another way than one after the other"
    if of.globals:
        return "its first tokens see, and are seen by, all"
    if of.sinks or of.clip or of.value_norm or of.value_of_key or of.temperature or of.value_scale != 1:
        return "its attention has sinks, bounds, or values of another kind"
    if of.qk_norm and of.qk_norm_after:
        return "its queries and keys are normed after they are rotated"
    if of.position is not None and type(of.position) is not rope.Config:
        return "its positions are of another kind than RoPE"
    scaling = of.position and of.position.scaling
    if isinstance(scaling, GROWING) and scaling.original < context:
        return "its positions change as the text grows"
    mlp = block.mlp
    if not isinstance(mlp, MLP) or mlp.activation == "xielu" or mlp.hidden_norm or mlp.sparsity:
        return "its MLP has learned activations, a norm inside, or gates that are 0 where they are small"
    if mlp.gate_scale != 1 or mlp.out_scale != 1 or mlp.limit:
        return "its MLP is scaled, or bounded"
    return None


def matrices(config: Config) -> list[str]:
    """The names of the weights that become panels."""
    places = [(f"blocks.{n}", block) for n, block in enumerate(config.blocks)]
    names = [
        name
        for path, block in places
        for name in (
            *(f"{path}.attention.{each}" for each in HEADS),
            *(f"{path}.mlp.{each}" for each in neurons(block)),
        )
    ]
    return [f"{name}.weight" for name in [*names, *(["projection"] if config.embedding_width else [])]]


def neurons(block: Block) -> tuple[str, ...]:
    """The matrices of a block's MLP."""
    return NEURONS if isinstance(block.mlp, MLP) and block.mlp.gated else NEURONS[1:]


def norms(config: Config, block: Block) -> dict[str, str]:
    """The names of a block's norms in the config, by place: before a half, behind it, of the sum."""
    if config.norm_first:
        return {name: name for name in block.norms}
    return {"attention_sum_norm": "attention_norm", "mlp_sum_norm": "mlp_norm"}


def relative(config: Config, n: int, tensors: Tensors) -> np.ndarray | None:
    """What the scores of each head of a block gain by the key's distance, from the farthest before the query
    to the farthest behind it: float32 [h 2c-1], or None where they gain nothing.
    """
    of: Any = config.blocks[n].attention
    if of.relative is None:
        return None
    offsets = np.arange(1 - config.context, config.context)
    if isinstance(of.relative, alibi.Config):
        return -alibi_of(of)[:, None] * np.abs(offsets).astype(np.float32)
    table = tensors[f"blocks.{0 if config.one_relative else n}.attention.relative.weight"]
    return np.ascontiguousarray(formats.unpack(table)[of.relative.bucket(offsets)].T, np.float32)


def positions(config: Config, tensors: Tensors) -> np.ndarray | None:
    """What is added to the embedding of each position: float32 [context d], or None."""
    of, width = config.position, config.embedding_width or config.width
    if of is None:
        return None
    if isinstance(of, learned.Config):
        return formats.finite("position.weight", tensors["position.weight"])[config.offset :]
    return of.vectors(np.arange(config.context) + config.offset, width)


def segments(config: Config, tensors: Tensors) -> np.ndarray | None:
    """What is added to the embeddings of each part of a text: float32 [n d], or None."""
    names = [name for name, count in (("task", config.tasks), ("segment", config.segments)) if count]
    if not names:
        return None
    tables = {name: formats.finite(f"{name}.weight", tensors[f"{name}.weight"]) for name in names}
    task = tables["task"][:1] if "task" in tables else np.float32(0)
    return np.ascontiguousarray(task + tables["segment"] if "segment" in tables else task, np.float32)


def kept(config: Config, rows: Sequence[Sequence[int]]) -> np.ndarray | None:
    """What multiplies the embeddings of each text where masked tokens have none (ESM): float32 [n]."""
    if config.mask is None:
        return None
    masked = [np.mean(np.asarray(row) == config.mask) for row in rows]
    return np.array([KEPT / (1 - part) if part < 1 else 0.0 for part in masked], np.float32)


class EncoderPlan(Packing):
    """An encoder's structures, and the memory they point to."""

    def __init__(self, config: Config, tensors: Tensors) -> None:
        reason = unsupported_reason(config, tensors)
        if reason is not None:
            raise UserError(f"The runtime does not run this model, because {reason}: use engine='pytorch'")
        sizes = (
            packed_product.packed_bytes(entry.type, *entry.shape)
            for entry in map(tensors.later, matrices(config))
        )
        super().__init__(tensors, sum(map(aligned, sizes)))
        self.config = config
        self._names = frozenset(config.weights())
        found = (getattr(block.attention, "position", None) for block in config.blocks)
        self._rotations = list(dict.fromkeys(each for each in found if each is not None))
        self._shared: int | None = None  # the relative positions that all blocks have
        blocks = [self._layer(n) for n in range(len(config.blocks))]
        self._layers = (native.Layer * len(config.layers))(*(blocks[n] for n in config.layers))
        self.model = self._model()
        self._finish()

    def _model(self) -> native.Encoder:
        config, width = self.config, self.config.embedding_width or self.config.width
        rotations = (structures.Rotation * max(1, len(self._rotations)))(
            *map(self._rotation, self._rotations)
        )
        self._kept.append(rotations)
        rows = self._table("embedding.weight")
        own = positions(config, self._tensors)
        of_parts = segments(config, self._tensors)
        last = config.norm if config.norm_first else None
        return native.Encoder(
            layers=self._layers,
            rotations=rotations,
            embedding=rows.ctypes.data,
            positions=None if own is None else self._keep(own),
            segments=None if of_parts is None else self._keep(of_parts),
            embedding_norm=self._norm("norm", config.norm if config.embedding_norm else None, width),
            norm=self._norm("last_norm", last, config.width),
            projection=self._matrix("projection") if config.embedding_width else packed_product.Matrix(),
            embedding_row=rows.shape[1],
            embedding_type=LAYOUTS[self._tensors.later("embedding.weight").type].id,
            layer_count=len(config.layers),
            rotation_count=len(self._rotations),
            embedding_width=width,
            width=config.width,
            context=min(config.context, np.iinfo(np.int32).max),
            mask=-1 if config.mask is None else config.mask,
            embedding_scale=config.embedding_scale,
        )

    def _layer(self, n: int) -> native.Layer:
        block, path = self.config.blocks[n], f"blocks.{n}"
        of: Any = block.attention
        assert isinstance(block.mlp, MLP)  # unsupported_reason has looked
        heads = {name: self._matrix(f"{path}.attention.{name}") for name in HEADS}
        inner = {name: self._matrix(f"{path}.mlp.{name}") for name in neurons(block)}
        sizes = of.normed if of.qk_norm else {}
        return native.Layer(
            **heads,
            **inner,
            **{
                what: self._norm(f"{path}.{name}", block.norm, self.config.width)
                for what, name in norms(self.config, block).items()
            },
            **{
                name: self._norm(f"{path}.attention.{name}", of.qk_norm, size) for name, size in sizes.items()
            },
            activation=self._activation(f"{path}.mlp", block.mlp),
            relative=self._relative(n),
            heads=of.heads,
            groups=of.groups,
            key_size=of.key_size,
            value_size=of.values,
            reach=-1 if of.reach is None else of.reach,
            rotation=-1 if of.position is None else self._rotations.index(of.position),
            norm_over=structures.OVER.index(of.qk_norm_over),
            scale=scale(of),
            softcap=of.softcap or 0.0,
        )

    def _relative(self, n: int) -> int | None:
        if self._shared is not None:
            return self._shared
        table = relative(self.config, n, self._tensors)
        found = None if table is None else self._keep(table)
        self._shared = found if self.config.one_relative else None
        return found


def scale(attention: Any) -> float:
    """What scores are multiplied by."""
    return attention.key_size**-0.5 if attention.scale is None else attention.scale


class EncoderEngine:
    """An encoder that runs its packed weights. Raises UserError for one that the kernels do not know."""

    together = 512  # tokens: what a layer computes of them stays in the caches
    pads = False

    def __init__(self, config: Config, tensors: Tensors, threads: int | None = None) -> None:
        self.packed = EncoderPlan(config, tensors)
        self.config, self.threads = config, threads

    def encode(
        self, rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None
    ) -> list[np.ndarray]:
        """float32 [t d] of each text's ids: the vectors of its tokens, all computed at once."""
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int32)
        found = native.encode(
            self.packed.model,
            self.config.vocab,
            flat(rows),
            starts,
            None if segments is None or not self.config.segments else flat(segments),
            kept(self.config, rows),
            self.threads,
            self.config.segments,
        )
        return [found[first:last] for first, last in pairwise(starts.tolist())]


def flat(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """int32: all rows' numbers, one after another."""
    return np.fromiter(chain.from_iterable(rows), np.int32)
