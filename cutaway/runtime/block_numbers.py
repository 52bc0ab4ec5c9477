"""Numbers that the native step and its reference derive from a block's config: kinds, scales, sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from cutaway.gguf import Packed
from cutaway.layers.config import Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.native import packed_product
from cutaway.position import rope
from cutaway.position.scaling import LongRoPE
from cutaway.quantization import formats
from cutaway.runtime.packed import aligned
from cutaway.weights import named_tensors
from cutaway.weights.named_tensors import Tensors

GATED = ("gated", "gated_local")
KINDS = ("mha", "gqa", "mqa", "local", *GATED, "differential")
LATENT = ("mla", "dsa")
LAMBDAS = ("lambda_query_one", "lambda_key_one", "lambda_query_two", "lambda_key_two")  # of differential
INDEX_NORM = Norm("layer", 1e-6)  # of an indexer's keys


def attends(block: Block) -> bool:
    """Whether a block has softmax attention, alone or beside a recurrence."""
    return kind_of(block.attention) in KINDS


def latent(block: Block) -> bool:
    """Whether a block has latent attention."""
    return kind_of(block.attention) in LATENT


def indexed(attention: Any) -> bool:
    """Whether an indexer chooses the keys of latent attention."""
    return kind_of(attention) == "dsa"


def alibi_of(attention: Any) -> np.ndarray:
    """What a position of distance takes from the scores of each head: float32 [h] (2108.12409)."""
    return np.array(attention.relative.slopes(attention.heads), np.float32)


def difference_norm(attention: Any) -> Norm:
    """The norm of differential attention's differences."""
    return Norm("rms", attention.eps, attention.norm_weight)


def difference(path: str, attention: Any, tensors: Tensors) -> tuple[float, float]:
    """Lambda of differential attention, and what multiplies the normed differences."""
    a1, b1, a2, b2 = (formats.unpack(tensors[f"{path}.{name}"]).astype(np.float64) for name in LAMBDAS)
    start = attention.lambda_start
    return float(np.exp(a1 @ b1) - np.exp(a2 @ b2) + start), 1.0 - start


def latent_row(of: Any) -> int:
    """Numbers that the cache has of a token: latent and rotated part, each filled up to whole sixteens."""
    return aligned(of.latent, packed_product.PANEL) + aligned(of.rope_dim, packed_product.PANEL)


def latent_scale(of: Any) -> float:
    """What scores of latent attention are multiplied by."""
    return (of.key_size + of.rope_dim) ** -0.5 if of.scale is None else of.scale


def index_scales(of: Any) -> tuple[float, float]:
    """What an indexer's queries and its heads' weights are multiplied by."""
    return of.index_size**-0.5, of.index_heads**-0.5


def key_up(path: str, of: Any, tensors: Tensors) -> Packed:
    """What moves each head's query to the latents, [heads latent, key_size]."""
    return named_tensors.made(named_tensors.absorbed(tensors, f"{path}.key_up.weight", of.heads))


def per_layer_scales(config: Decoder) -> tuple[float, float, float]:
    """What multiplies a row of the per-layer table, what projection gives, and their sum."""
    assert config.per_layer is not None
    return config.per_layer.size**0.5, config.width**-0.5, 2.0**-0.5


def first_length(config: Decoder) -> int | None:
    """The length past which a text rotates otherwise, as a whole; None where it never does."""
    return next(iter(first_lengths(config)), None)


def first_lengths(config: Decoder) -> set[int]:
    """Lengths past which some layers rotate otherwise (LongRoPE)."""
    positions = (block.attention.position for block in config.blocks)
    scalings = (position.scaling for position in positions if isinstance(position, rope.Config))
    return {scaling.original for scaling in scalings if isinstance(scaling, LongRoPE)}
