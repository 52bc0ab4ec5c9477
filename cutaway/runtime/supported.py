"""Which models the runtime runs, and why not the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cutaway.layers.config import MLP, MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.native import packed_product, structures
from cutaway.native.quant import LAYOUTS
from cutaway.position import alibi, learned, rope
from cutaway.position.scaling import DynamicNTK
from cutaway.runtime.block_numbers import GATED, KINDS, LATENT, first_lengths, latent
from cutaway.runtime.packed import TABLES, as_laid, is_matrix
from cutaway.weights.named_tensors import Tensors


def unsupported_reason(config: Decoder, tensors: Tensors) -> str | None:
    """Why the runtime cannot run this model, in words that follow "because"; None where it can."""
    if config.position is not None and not isinstance(config.position, learned.Config):
        return "sinusoids are added to the embeddings"
    if config.norm_then_position:
        return "positions are added to its embeddings after their norm"
    if config.table is not None:
        return "its embedding table is not one matrix"
    if config.streams:
        return "it has several residual streams"
    if config.per_layer is not None and config.per_layer.vocab < config.vocab:
        return "its per-layer embeddings have fewer rows than its vocabulary"
    if config.logits_bias or config.one_relative or not config.last_norm:
        return "its logits have a bias, its blocks one table of relative positions, or its end no norm"
    for n, block in enumerate(config.blocks):
        reason = _unsupported_block(block)
        if reason is not None:
            return f"block {n}: {reason}"
    if len(first_lengths(config)) > 1:
        return "its layers rotate otherwise from different lengths on"
    for name, shape in replace(config, mtp=()).weights().items():
        if is_matrix(name, shape) and name not in TABLES:
            type = as_laid(name, shape, config, tensors)[1]
            if type not in packed_product.TYPES:
                return f"the weight {name} is stored as {type}"
    table = tensors.later("embedding.weight").type
    for name in (name for name in TABLES if name in tensors):
        if tensors.later(name).type not in LAYOUTS:
            return f"the table {name} is stored as {tensors.later(name).type}"
    if config.tied and table not in packed_product.TYPES:
        return f"the embedding table, which is also the head, is stored as {table}"
    return None


def _unsupported_block(block: Block) -> str | None:
    attention: Any = block.attention
    if block.cross is not None:
        return "cross-attention has no kernel"
    beside = block.beside and kind_of(block.beside.mixer)
    if beside and (beside not in structures.RECURRENCES or kind_of(attention) not in KINDS):
        return f"{beside} beside {kind_of(attention)} attention has no kernel"
    if kind_of(attention) not in (*KINDS, *LATENT, *structures.RECURRENCES):
        return f"{kind_of(attention)} attention has no kernel"
    mlp = block.mlp
    if block.per_layer and mlp and mlp.activation == "xielu":
        return "its per-layer embeddings have learned activations"
    if isinstance(mlp, MLP) and mlp.sparsity:
        return "its gates are 0 where they are small"
    if block.shared:
        return "it shares a transformer with other layers"
    if block.laurel:
        return "it has a matrix beside attention"
    if isinstance(mlp, MLP) and mlp.hidden_norm:
        return "its MLP has a norm between its matrices"
    if isinstance(mlp, MoE):
        if mlp.bias and mlp.shared:
            return "its shared expert has biases"
        if mlp.router.by_logits:
            return "its experts are chosen by logits"
        if mlp.latent or mlp.norms or mlp.router.on_input:
            return "its experts are of a latent, have norms of their own, or weigh what they read"
        if mlp.activation == "xielu":
            return "its experts have activations of their own"
        if mlp.router.score == "sparsemixer":
            return "its router is SparseMixer"
    if kind_of(attention) in structures.RECURRENCES:
        odd = getattr(attention, "apart", False) or getattr(attention, "negative", False)
        if odd:
            return "its delta rule has a convolution of each part, or betas above 1"
        odd = getattr(attention, "direct", False) or getattr(attention, "bound", None) is not None
        return "its decays have one matrix, or a bound" if odd else None
    if getattr(attention, "gated", False):
        return "its latent attention has gates"
    if getattr(attention, "interleaved", False) or getattr(attention, "index_layer", None) is not None:
        return "its indexer rotates neighbouring pairs, or reads another layer's choice"
    if getattr(attention, "temperature", None) and attention.temperature.first:
        return "its queries grow from another position than 0"
    if kind_of(attention) in GATED and (attention.softplus or attention.per_head):
        return "its gates are softplus or one number a head"
    if getattr(attention, "value_scale", 1.0) != 1.0:
        return "its values are scaled"
    relative = None if latent(block) else attention.relative
    if relative is not None and type(relative) is not alibi.Config:
        return "its scores have learned biases"
    position = attention.position
    if position is not None and type(position) is not rope.Config:
        return "its positions are of another kind than RoPE"
    if position is not None and isinstance(position.scaling, DynamicNTK):
        return "its positions change as the text grows"
    return None
