"""What families of decoders share: rows of settings, weight names, and a config from settings and back.

``config.json`` is read in the layout of transformers 5 (``rope_parameters``) and in the older one
(``rope_theta``, ``rope_scaling``), and written in the older one, which both read. GGUF keys are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cutaway.attention import gqa, local, mha, mqa
from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.gguf import Packed, made
from cutaway.layers.config import MLP, MoE, Norm
from cutaway.model.config import Block, Decoder, Encoder
from cutaway.position import rope
from cutaway.position.scaling import Factors, Linear, Llama3
from cutaway.weights import quant
from cutaway.weights.family import (
    LAYER_COUNT,
    NUMBER,
    Entries,
    Family,
    Field,
    Kind,
    Only,
    Present,
    Row,
    Settings,
    shared,
    words,
)
from cutaway.weights.fields import EXPERTS, Fields
from cutaway.weights.rules import Rule, row, same, stack

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
ACTIVATIONS |= {"gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
ROPE_FREQS = "rope_freqs.weight"
FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
}  # config.json's keys, ours
LLAMA3 |= {"original_max_position_embeddings": "original"}


# ---- a config from settings, and settings from a config ----------------------------------------------------


def heads(count: int, kv_heads: int, window: int | None = None, **rest: Any) -> Heads:
    """The mechanism of these numbers: local with a window, else mha, mqa or gqa."""
    if window is not None:
        return local.Config(heads=count, kv_heads=kv_heads, window=window, **rest)
    if kv_heads == count:
        return mha.Config(heads=count, **rest)
    if kv_heads == 1:
        return mqa.Config(heads=count, **rest)
    return gqa.Config(heads=count, kv_heads=kv_heads, **rest)


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm = Norm(known["norm"], known["eps"])
    dense = known.get("dense") or ("experts" not in known,) * known["layers"]
    windows = known.get("windows") or (known.get("window"),) * known["layers"]

    def block(window: int | None, is_dense: bool) -> Block:
        position = known["rope"] if window is None else known.get("local_rope", known["rope"])
        attention = heads(
            known["heads"],
            known["kv_heads"],
            window,
            key_size=known["head_size"],
            position=position,
            scale=known.get("scale"),
            qk_norm=norm if known.get("qk_norm") else None,
            bias=known["bias"],
            out_bias=known["out_bias"],
        )
        return Block(
            attention, _dense(known) if is_dense else _sparse(known), norm, known.get("post_norm", False)
        )

    made = {kind: block(*kind) for kind in set(zip(windows, dense, strict=True))}
    return Decoder(
        vocab=known["vocab"],
        width=known["width"],
        context=known["context"],
        blocks=tuple(made[kind] for kind in zip(windows, dense, strict=True)),
        norm=norm,
        tied=known["tied"],
        embedding_scale=known.get("embedding_scale", 1.0),
        position=known.get("position"),
        softcap=known.get("softcap"),
    )


def _dense(known: Settings) -> MLP:
    return MLP(known["hidden"], known["activation"], known.get("gated", True), known.get("mlp_bias", False))


def _sparse(known: Settings) -> MoE:
    return MoE(
        known["experts"],
        known["top_k"],
        known["expert_hidden"],
        known["activation"],
        normalised=known["normalised"],
        shared=known.get("shared", 0),
        shared_gate=known.get("shared_gate", False),
    )


def window_of(attention: Heads) -> int | None:
    """The window of a local layer."""
    return attention.window if isinstance(attention, local.Config) else None


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; ``save`` refuses one that they cannot express: it reads back as another."""
    windows = tuple(window_of(block.attention) for block in config.blocks)
    first = config.blocks[0].attention
    full = next((b.attention for b, w in zip(config.blocks, windows, strict=True) if w is None), first)
    near = next((b.attention for b, w in zip(config.blocks, windows, strict=True) if w is not None), None)
    dense = next((block.mlp for block in config.blocks if isinstance(block.mlp, MLP)), None)
    sparse = next((block.mlp for block in config.blocks if isinstance(block.mlp, MoE)), None)
    known: Settings = {
        "layers": len(config.blocks),
        "causal": isinstance(config, Decoder),
        "vocab": config.vocab,
        "width": config.width,
        "context": config.context,
        "eps": config.blocks[0].norm.eps,
        "heads": first.heads,
        "kv_heads": first.groups,
        "head_size": first.key_size,
        "scale": first.scale,
        "bias": first.bias,
        "out_bias": first.out_bias,
        "rope": full.position,
        "local_rope": near.position if near else None,
        "window": windows[0],
        "windows": windows,
        "dense": tuple(isinstance(block.mlp, MLP) for block in config.blocks),
        "hidden": (dense or sparse).hidden,  # type: ignore[union-attr]
        "activation": (dense or sparse).activation,  # type: ignore[union-attr]
        "mlp_bias": dense.bias if dense else False,
    }
    if sparse is not None:
        known |= {"experts": sparse.experts, "top_k": sparse.top_k, "expert_hidden": sparse.hidden}
        known |= {"normalised": sparse.normalised, "shared": sparse.shared}
    if isinstance(config, Encoder):
        return known | {"segments": config.segments}
    return known | {"tied": config.tied, "softcap": config.softcap}


# ---- rows of settings --------------------------------------------------------------------------------------


class Vocab(Field):
    """The size of the vocabulary; in GGUF the rows of the embedding table, since older files have no key."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        size = rows_of(fields, "token_embd.weight")
        meaning = f"a vocabulary of another size than the {size} rows of token_embd.weight"
        fields.only("vocab_size", (size,), meaning)
        return {"vocab": size}


def rows_of(fields: Fields, name: str) -> int:
    """The number of rows of a tensor that must be in the file."""
    table = fields.tensors.get(name)
    if table is None or not table.shape:
        raise UserError(f"{fields.where}: the weight {name!r} is missing")
    return table.shape[0]


class HeadSize(Field):
    """The size of a head. GGUF states it twice, and how much of it RoPE rotates."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super()._from_gguf(fields, known, own)
        size = found["head_size"]
        fields.only("attention.value_length", (size,), "values of another size than keys")
        fields.only("rope.dimension_count", (size,), "partial rotary position embedding")
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        keys = (self.gguf, "attention.value_length", "rope.dimension_count") if gguf else (self.hf,)
        return {key: known["head_size"] for key in keys if key}


def _even(fields: Fields, key: str) -> int:
    size = fields.integer(key)
    if size % 2:
        raise fields.refusal(key, f"is {size}: rotary position embedding needs pairs, so it must be even")
    return size


class Rope(Row):
    """Rotary position embedding. ``defaults`` hold its ``rope_base``."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {"rope": _gguf_rope(fields, known["head_size"])}
        older, newer = fields.section("rope_scaling"), fields.section("rope_parameters")
        given = older if older and older.data else newer  # transformers too reads the older layout first
        base = own.defaults["rope_base"]
        if fields.has("rope_theta") and not (given and given.has("rope_theta")):
            base = fields.number("rope_theta", low=1.0) if fields.stated("rope_theta") else base
        fields.get("rope_theta")
        fields.only("partial_rotary_factor", (None, 1.0), "partial rotary position embedding")
        return {"rope": hf_rope(given, known, base, fields)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        position = known["rope"] or rope.Config(1)
        if not gguf:
            return {"rope_theta": position.base, "rope_scaling": hf_scaling(position)}
        entries: Entries = {"rope.freq_base": float(position.base)}
        match position.scaling:
            case Llama3(original=original):
                entries["rope.scaling.original_context_length"] = original
            case Linear(factor):
                entries |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}
        return entries


def hf_rope(given: Fields | None, known: Settings, base: float, top: Fields | None = None) -> rope.Config:
    """The positions of a section of config.json, with this ``base`` unless it has its own.

    ``top``: the keys beside it, whose length of the pretraining overrides the section's.
    """
    size, original = known["head_size"], "original_max_position_embeddings"
    if top:
        top.get(original)  # of the scalings read here only llama3 has one
    if given is None:
        return rope.Config(size, base)
    if given.stated("rope_theta"):
        base = given.number("rope_theta", low=1.0)
    given.only("partial_rotary_factor", (1.0,), "partial rotary position embedding")
    given.get("type")
    key = "rope_type" if given.has("rope_type") else "type"
    kind = given.choice(key, {"default": None, "linear": Linear, "llama3": Llama3}, "default")
    scaling = None
    if kind is Linear:
        scaling = Linear(given.number("factor"))
    elif kind is Llama3:
        stated = top if top and top.stated(original) else given
        scaling = Llama3(
            **{LLAMA3[key]: given.number(key) for key in list(LLAMA3)[:3]},
            original=stated.integer(original) if stated.stated(original) else known["context"],
        )
    given.finish((original,), "these rotary positions have")
    return rope.Config(size, base, scaling)


def hf_scaling(position: rope.Config) -> Entries | None:
    """The ``rope_scaling`` entry of these positions."""
    match position.scaling:
        case Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3() as scaling:
            return {"rope_type": "llama3"} | {key: getattr(scaling, name) for key, name in LLAMA3.items()}
    return None


def _gguf_rope(fields: Fields, size: int) -> rope.Config:
    """Rotary positions from the metadata, and from the divisors that the file may carry as a tensor."""
    kind = fields.choice("rope.scaling.type", {"none": None, "linear": Linear}, "linear")
    factors = [
        fields.number(key, 1.0) for key in ("rope.scaling.factor", "rope.scale_linear") if fields.has(key)
    ]
    fields.get("rope.scale_linear")
    scaling = Linear(factors[0]) if kind and factors and factors[0] != 1.0 else None
    fields.only("rope.scaling.attn_factor", (1.0,), "scaling attention with the rotary frequencies")
    base = fields.number("rope.freq_base", 10000.0, 1.0)
    original = fields.integer("rope.scaling.original_context_length", 8192)
    divisors = fields.tensors.get(ROPE_FREQS)
    if divisors is None:
        return rope.Config(size, base, scaling)
    if scaling is not None:
        raise fields.refusal("rope.scaling.factor", f"and the weight {ROPE_FREQS!r} both scale positions")
    if divisors.type != "F32" or divisors.shape != (size // 2,):
        found = f"{divisors.type} {divisors.shape}"
        raise fields.refusal(
            "rope.dimension_count", f"asks for {size // 2} divisors as F32, but {ROPE_FREQS!r} is {found}"
        )
    plain = rope.Config(size, base)
    return rope.Config(size, base, recognised(plain, quant.unpack(made(ROPE_FREQS, divisors)), original))


def recognised(position: rope.Config, divisors: np.ndarray, original: int) -> Llama3 | Factors:
    """Llama 3's scaling, if its models' constants make these divisors; else the divisors themselves."""
    if not (np.isfinite(divisors) & (divisors > 0)).all():
        raise UserError(f"the weight {ROPE_FREQS!r} holds divisors that are not positive numbers")
    likely = Llama3(factor=float(str(divisors.max())), low=1.0, high=4.0, original=original)
    if likely.factor > 1 and np.allclose(divisors_of(position, likely), divisors, rtol=2e-6, atol=0):
        return likely
    return Factors(tuple(divisors.astype(np.float64).tolist()))


def divisors_of(position: rope.Config, scaling: Llama3 | Factors) -> np.ndarray:
    """float32 [size / 2]: what a scaling divides the frequency of each pair by."""
    plain = rope.Config(position.size, position.base).frequencies()
    return (plain / scaling.stretch(plain)).astype(np.float32)


def gguf_extras(config: Decoder | Encoder) -> dict[str, Packed]:
    """The tensor of divisors, for scalings that GGUF has no keys for."""
    position = config.blocks[0].attention.position
    if position is None or not isinstance(position.scaling, Llama3 | Factors):
        return {}
    return {ROPE_FREQS: quant.pack(divisors_of(position, position.scaling), "F32")}


class UpperWindows(Row):
    """Sliding windows in the upper layers, or in those that ``layer_types`` lists (Qwen 2 and 3)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {}
        layers, window = known["layers"], None
        if fields.flag("use_sliding_window") if fields.stated("use_sliding_window") else False:
            window = fields.integer("sliding_window", None if fields.has("sliding_window") else 4096)
        fields.get("sliding_window")
        first = fields.integer("max_window_layers", low=0) if fields.stated("max_window_layers") else 28
        kinds = fields.each_layer("layer_types", layers, (SLIDING, FULL))
        is_local = (
            [n >= first for n in range(layers)] if kinds is None else [kind == SLIDING for kind in kinds]
        )
        if kinds and any(is_local) and window is None:
            raise fields.refusal("layer_types", "names sliding layers, but use_sliding_window is not true")
        return {"windows": tuple(window if each else None for each in is_local)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        windows = known["windows"]
        if gguf:
            return {}
        near = next((window for window in windows if window is not None), None)
        if near is None:
            return {"use_sliding_window": False}
        return {
            "use_sliding_window": True,
            "sliding_window": near,
            "max_window_layers": windows.index(near),
            "layer_types": [FULL if window is None else SLIDING for window in windows],
        }


class NoWindows(UpperWindows):
    """The keys of ``UpperWindows`` where only full attention is supported (Qwen's mixtures of experts)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {}
        fields.only("use_sliding_window", (False,), "a sliding window in a mixture of experts")
        fields.each_layer("layer_types", known["layers"], (FULL,))
        for key in ("sliding_window", "max_window_layers"):
            fields.get(key)
        return {}


class SparseLayers(Row):
    """Which layers are dense: those listed, and those between the steps (Qwen's mixtures of experts)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {}
        step = fields.integer("decoder_sparse_step") if fields.stated("decoder_sparse_step") else 1
        listed = fields.get("mlp_only_layers") or []
        if not isinstance(listed, list) or any(type(n) is not int for n in listed):
            raise fields.refusal("mlp_only_layers", "should be a list of layer numbers")
        return {"dense": tuple(n in listed or (n + 1) % step != 0 for n in range(known["layers"]))}

    def write(self, known: Settings, gguf: bool) -> Entries:
        dense = [n for n, each in enumerate(known["dense"]) if each]
        return {} if gguf else {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def same_heads(known: Settings) -> int:
    """As many key-value heads as query heads."""
    return known["heads"]


ACTIVATION = words(ACTIVATIONS, HF_ACTIVATIONS)
TOP_K = Kind(lambda fields, key: fields.integer(key, high=EXPERTS))
ANY = (
    Only("is_encoder_decoder", None, (False, None), "a model of an encoder and a decoder"),
    Only("add_cross_attention", None, (False,), "cross-attention"),
    Only(None, "nextn_predict_layers", (0,), "multi-token prediction"),
)
CAUSAL = (Only("is_causal", "attention.causal", (True,), "attention to later tokens"), *ANY)
ONE_MLP = (
    Only(None, "expert_count", (0,), "a mixture of experts"),
    Only(None, "expert_used_count", (0,), "a mixture of experts"),
)
DENSE = (Field("hidden", "intermediate_size", "feed_forward_length", each_layer=True), *ONE_MLP)
SIZES = (
    Field("layers", "num_hidden_layers", "block_count", LAYER_COUNT),
    Vocab("vocab", "vocab_size", "vocab_size"),
    Field("width", "hidden_size", "embedding_length"),
    Field("context", "max_position_embeddings", "context_length"),
    Field("heads", "num_attention_heads", "attention.head_count", each_layer=True),
    Field("kv_heads", "num_key_value_heads", "attention.head_count_kv", missing=same_heads, each_layer=True),
    HeadSize("head_size", "head_dim", "attention.key_length", Kind(_even), missing=shared),
    Rope(),
    Field("eps", "rms_norm_eps", "attention.layer_norm_rms_epsilon", NUMBER),
    Field("activation", "hidden_act", None, ACTIVATION),
    Present("tied", "tie_word_embeddings", "output.weight", absent=True),
    *CAUSAL,
)
EXPERTS_IN_GGUF = (
    Only(None, "expert_gating_func", (1,), "another score of experts than softmax"),
    Only(None, "expert_weights_scale", (1.0,), "scaling the experts' outputs"),
    Only(None, "expert_group_count", (0, 1), "routing to groups of experts"),
)


def biases(*keys: str) -> tuple[Present, ...]:
    """Rows for a bias on query, key and value and one on the output, by one key of config.json."""
    return (
        Present("bias", *keys, "blk.0.attn_q.bias"),  # type: ignore[arg-type]
        Present("out_bias", *keys, "blk.0.attn_output.bias"),  # type: ignore[arg-type]
    )


def experts(count: str, hidden: tuple[str, str], alias: str | None = None) -> tuple[Field | Only, ...]:
    """Rows for a mixture of experts: the key of their number, and the two of their width."""
    return (
        Field("experts", count, "expert_count", TOP_K, alias=alias),
        Field("top_k", "num_experts_per_tok", "expert_used_count", TOP_K),
        Field("expert_hidden", *hidden, each_layer=True),
        *EXPERTS_IN_GGUF,
    )


# ---- names of weights --------------------------------------------------------------------------------------


def pairs(*names: tuple[str, str], parts: Sequence[str] = ("weight", "bias")) -> tuple[Rule, ...]:
    """Rules for modules whose weights are stored unchanged."""
    return tuple(Rule(f"{theirs}.{part}", f"{ours}.{part}", same) for theirs, ours in names for part in parts)


def weights(*names: tuple[str, str]) -> tuple[Rule, ...]:
    """The same for modules without a bias."""
    return pairs(*names, parts=("weight",))


HF_DECODER = (
    *weights(("model.embed_tokens", "embedding"), ("lm_head", "head"), ("model.norm", "norm")),
    *pairs(
        ("model.layers.{n}.self_attn.q_proj", "blocks.{n}.attention.query"),
        ("model.layers.{n}.self_attn.k_proj", "blocks.{n}.attention.key"),
        ("model.layers.{n}.self_attn.v_proj", "blocks.{n}.attention.value"),
        ("model.layers.{n}.self_attn.o_proj", "blocks.{n}.attention.out"),
        ("model.layers.{n}.mlp.gate_proj", "blocks.{n}.mlp.gate"),
        ("model.layers.{n}.mlp.up_proj", "blocks.{n}.mlp.up"),
        ("model.layers.{n}.mlp.down_proj", "blocks.{n}.mlp.down"),
    ),
    *weights(
        ("model.layers.{n}.input_layernorm", "blocks.{n}.attention_norm"),
        ("model.layers.{n}.post_attention_layernorm", "blocks.{n}.mlp_norm"),
    ),
)
HF_QK_NORM = weights(
    ("model.layers.{n}.self_attn.q_norm", "blocks.{n}.attention.query_norm"),
    ("model.layers.{n}.self_attn.k_norm", "blocks.{n}.attention.key_norm"),
)
HF_EXPERTS = weights(  # of Qwen's mixtures
    ("model.layers.{n}.mlp.gate", "blocks.{n}.mlp.router"),
    ("model.layers.{n}.mlp.experts.{e}.gate_proj", "blocks.{n}.mlp.experts.{e}.gate"),
    ("model.layers.{n}.mlp.experts.{e}.up_proj", "blocks.{n}.mlp.experts.{e}.up"),
    ("model.layers.{n}.mlp.experts.{e}.down_proj", "blocks.{n}.mlp.experts.{e}.down"),
)
GGUF_EMBEDDINGS = weights(("token_embd", "embedding"), ("output", "head"), ("output_norm", "norm"))
GGUF_QUERY_KEY = (
    ("blk.{n}.attn_q", "blocks.{n}.attention.query"),
    ("blk.{n}.attn_k", "blocks.{n}.attention.key"),
)
GGUF_VALUE = ("blk.{n}.attn_v", "blocks.{n}.attention.value")
GGUF_OUT = ("blk.{n}.attn_output", "blocks.{n}.attention.out")
GGUF_MLP = (
    ("blk.{n}.ffn_gate", "blocks.{n}.mlp.gate"),
    ("blk.{n}.ffn_up", "blocks.{n}.mlp.up"),
    ("blk.{n}.ffn_down", "blocks.{n}.mlp.down"),
)
GGUF_NORMS = weights(
    ("blk.{n}.attn_norm", "blocks.{n}.attention_norm"), ("blk.{n}.ffn_norm", "blocks.{n}.mlp_norm")
)
GGUF_PLAIN = (  # without biases, which llama.cpp does not read in most families
    *GGUF_EMBEDDINGS,
    *GGUF_NORMS,
    *weights(*GGUF_QUERY_KEY, GGUF_VALUE, GGUF_OUT, *GGUF_MLP),
)
GGUF_QK_NORM = weights(
    ("blk.{n}.attn_q_norm", "blocks.{n}.attention.query_norm"),
    ("blk.{n}.attn_k_norm", "blocks.{n}.attention.key_norm"),
)
GGUF_EXPERTS = (
    *weights(("blk.{n}.ffn_gate_inp", "blocks.{n}.mlp.router")),
    Rule("blk.{n}.ffn_gate_exps.weight", "blocks.{n}.mlp.experts.{e}.gate.weight", stack),
    Rule("blk.{n}.ffn_up_exps.weight", "blocks.{n}.mlp.experts.{e}.up.weight", stack),
    Rule("blk.{n}.ffn_down_exps.weight", "blocks.{n}.mlp.experts.{e}.down.weight", stack),
)
GGUF_SHARED_EXPERT = (
    Rule("blk.{n}.ffn_gate_inp_shexp.weight", "blocks.{n}.mlp.shared_gate.weight", row),
    *weights(
        ("blk.{n}.ffn_gate_shexp", "blocks.{n}.mlp.shared.gate"),
        ("blk.{n}.ffn_up_shexp", "blocks.{n}.mlp.shared.up"),
        ("blk.{n}.ffn_down_shexp", "blocks.{n}.mlp.shared.down"),
    ),
)
