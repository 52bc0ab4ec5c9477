"""Gemma 3, text (2503.19786): five local layers to one global, norms before and after each half, normed
heads.

Local and global layers turn by different bases, embeddings are scaled by the root of the width, and a file's
norms hold w where x is multiplied by w + 1.
"""

from __future__ import annotations

import numpy as np

from cutaway.attention.parts.heads import Heads
from cutaway.layers.config import MLP, Norm
from cutaway.model.config import Block, Decoder
from cutaway.position import rope
from cutaway.weights import common
from cutaway.weights.fields import Fields, each_layer
from cutaway.weights.rules import Rule, plus_one

HF_TYPES = ("gemma3_text",)
GGUF_ARCHITECTURES = ("gemma3",)
HF_PREFIX = "model."
IGNORED_HF = ("model.layers.*.self_attn.rotary_emb.inv_freq",)
IGNORED_GGUF = ()

NORMS = {
    "model.layers.{n}.input_layernorm": "blocks.{n}.attention_norm",
    "model.layers.{n}.post_attention_layernorm": "blocks.{n}.attention_post_norm",
    "model.layers.{n}.pre_feedforward_layernorm": "blocks.{n}.mlp_norm",
    "model.layers.{n}.post_feedforward_layernorm": "blocks.{n}.mlp_post_norm",
    "model.layers.{n}.self_attn.q_norm": "blocks.{n}.attention.query_norm",
    "model.layers.{n}.self_attn.k_norm": "blocks.{n}.attention.key_norm",
    "model.norm": "norm",
}
HF = (
    *common.HF_DECODER,
    *(Rule(f"{theirs}.weight", f"{ours}.weight", plus_one) for theirs, ours in NORMS.items()),
)
GGUF = (
    *common.GGUF_DECODER,
    *common.GGUF_QUERY_KEY,
    *common.pairs(
        ("blk.{n}.attn_q_norm", "blocks.{n}.attention.query_norm"),
        ("blk.{n}.attn_k_norm", "blocks.{n}.attention.key_norm"),
        ("blk.{n}.post_attention_norm", "blocks.{n}.attention_post_norm"),
        ("blk.{n}.post_ffw_norm", "blocks.{n}.mlp_post_norm"),
        parts=("weight",),
    ),
)
SLIDING, FULL = "sliding_attention", "full_attention"
PATTERN = 6  # every sixth layer is global unless the config says otherwise
LOCAL_BASE, GLOBAL_BASE = 10_000.0, 1_000_000.0


def from_hf(fields: Fields) -> Decoder:
    fields.only("use_bidirectional_attention", False, "attention to what comes later")
    # Transformers reads this entry of Gemma 2's and then leaves it out of the equation.
    fields.only(
        "attn_logit_softcapping", None, "a bound on Gemma 3's attention scores, which no engine agrees on,"
    )
    size = fields.integer("head_dim", 256)
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-6))
    layers = common.hf_layers(fields)
    kinds = each_layer(fields, "layer_types", layers, (SLIDING, FULL))
    pattern = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", PATTERN))
    kinds = kinds or [SLIDING if is_local else FULL for is_local in _every(pattern, layers)]
    mlp = MLP(
        fields.integer("intermediate_size"),
        fields.choice("hidden_activation", common.ACTIVATIONS, "gelu_pytorch_tanh"),
    )

    def attention(window: int | None, position: rope.Config) -> Heads:
        scalar = fields.number("query_pre_attn_scalar", 256.0)
        return common.heads(
            fields.integer("num_attention_heads", 8),
            fields.integer("num_key_value_heads", 4),
            window,
            key_size=size,
            position=position,
            scale=None if scalar == size else scalar**-0.5,
            qk_norm=norm,
            bias=fields.flag("attention_bias", False),
            out_bias=fields.flag("attention_bias", False),
        )

    near, far = _positions(fields, size)
    blocks = {
        SLIDING: lambda: Block(attention(fields.integer("sliding_window", 4096), near), mlp, norm, True),
        FULL: lambda: Block(attention(None, far), mlp, norm, True),
    }
    made = {kind: blocks[kind]() for kind in set(kinds)}
    width = fields.integer("hidden_size", 2304)
    return Decoder(
        vocab=fields.integer("vocab_size", 262_208),
        width=width,
        context=fields.integer("max_position_embeddings", 131_072),
        blocks=tuple(made[kind] for kind in kinds),
        norm=norm,
        tied=fields.flag("tie_word_embeddings", True),
        embedding_scale=_embedding_scale(width),
        softcap=fields.number("final_logit_softcapping", None),
    )


def _embedding_scale(width: int) -> float:
    """The root of the width, as float32 holds it."""
    return float(np.float32(width**0.5))


def _positions(fields: Fields, size: int) -> tuple[rope.Config, rope.Config]:
    """Of local and of global layers. Only the global ones are ever stretched in the older layout."""
    parameters = fields.section("rope_parameters")
    if parameters is None:
        near = rope.Config(size, fields.number("rope_local_base_freq", LOCAL_BASE, 1.0))
        return near, common.hf_rope(fields, size, GLOBAL_BASE)
    each = []
    for kind, base in ((SLIDING, LOCAL_BASE), (FULL, GLOBAL_BASE)):
        inner = parameters.section(kind)
        if inner is None:
            each.append(rope.Config(size, base))
        else:
            each.append(rope.Config(size, inner.number("rope_theta", base, 1.0), common.hf_scaling(inner)))
    return each[0], each[1]


def _one_of_each(config: Decoder) -> tuple[Heads | None, Heads | None]:
    """A local and a global layer's attention, where there are such."""
    local = next((b.attention for b in config.blocks if common.window_of(b.attention) is not None), None)
    full = next((b.attention for b in config.blocks if common.window_of(b.attention) is None), None)
    return local, full


def to_hf(config: Decoder) -> dict[str, object]:
    block = config.blocks[0]
    attention = block.attention
    near, far = _one_of_each(config)
    window = common.window_of(near) if near else None
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **common.hf_sizes(config),
        "rope_local_base_freq": near.position.base if near and near.position else LOCAL_BASE,
        "rope_theta": far.position.base if far and far.position else GLOBAL_BASE,
        "rope_scaling": common.hf_scaling_entry(far.position) if far and far.position else None,
        "sliding_window": window or 4096,
        "layer_types": [FULL if common.window_of(b.attention) is None else SLIDING for b in config.blocks],
        "query_pre_attn_scalar": _scalar(attention),
        "final_logit_softcapping": config.softcap,
        "hidden_activation": common.HF_ACTIVATIONS[block.mlp.activation],
        "attention_bias": attention.bias,
    }


def _scalar(attention: Heads) -> float | int:
    if attention.scale is None:
        return attention.key_size
    scalar = attention.scale**-2
    return round(scalar) if abs(scalar - round(scalar)) < 1e-9 * scalar else scalar


def from_gguf(fields: Fields, tensors: common.Announced) -> Decoder:
    norm = Norm("rms", fields.number("attention.layer_norm_rms_epsilon"))
    window = fields.integer("attention.sliding_window", None)
    layers = common.gguf_layers(fields)
    width, count = fields.integer("embedding_length"), fields.integer("attention.head_count")
    # llama.cpp knows the largest model, whose scores are scaled by another size, by its number of layers.
    scale = common.shared(fields, width, count) ** -0.5 if layers == 62 else None
    plain = rope.Config(
        common.gguf_head_size(fields, width, count), fields.number("rope.freq_base_swa", LOCAL_BASE)
    )
    attention = common.gguf_heads(fields, tensors, qk_norm=norm, scale=scale)
    near = (
        common.gguf_heads(fields, tensors, window, qk_norm=norm, scale=scale, position=plain)
        if window
        else attention
    )
    decoder = common.gguf_decoder(fields, tensors, attention, "gelu_tanh", post_norm=True)
    blocks = tuple(
        Block(near if is_local else attention, block.mlp, norm, True)
        for block, is_local in zip(decoder.blocks, _pattern(fields, layers), strict=True)
    )
    return Decoder(
        decoder.vocab,
        width,
        decoder.context,
        blocks,
        norm,
        decoder.tied,
        embedding_scale=_embedding_scale(width),
        softcap=fields.number("final_logit_softcapping", None),
    )


def _pattern(fields: Fields, layers: int) -> list[bool]:
    """Which layers are local: a list, or how many layers from one global layer to the next."""
    stated = fields.data.get(f"{fields.prefix}attention.sliding_window_pattern")
    if isinstance(stated, np.ndarray):
        if stated.dtype != np.bool_ or len(stated) != layers:
            raise fields.refusal(
                "attention.sliding_window_pattern", f"should be a flag for each of {layers} layers"
            )
        return stated.tolist()
    return _every(fields.integer("attention.sliding_window_pattern", PATTERN), layers)


def _every(pattern: int, layers: int) -> list[bool]:
    """Which layers are local if every ``pattern``-th is global."""
    return [bool((n + 1) % pattern) for n in range(layers)]


def to_gguf(config: Decoder) -> dict[str, object]:
    near, far = _one_of_each(config)
    shown = far or near
    own: dict[str, object] = {}
    if near is not None and near.position is not None:
        own["attention.sliding_window"] = common.window_of(near)
        own["rope.freq_base_swa"] = float(near.position.base)
        is_local = [common.window_of(b.attention) is not None for b in config.blocks]
        if is_local != _every(PATTERN, len(is_local)):
            own["attention.sliding_window_pattern"] = np.array(is_local)
    if config.softcap is not None:
        own["final_logit_softcapping"] = config.softcap
    return {**common.gguf_sizes(config, shown), **own}
