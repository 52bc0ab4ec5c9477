"""What the families of decoders have in common: how heads, rotary positions and gated blocks are written in
configs.

Hugging Face's ``config.json`` is read in the layout of transformers 5 (``rope_parameters``) and in the older
one (``rope_theta``, ``rope_scaling``), and written in the older one, which both read. GGUF keys are
llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cutaway.attention import gqa, local, mha, mqa
from cutaway.attention.parts.heads import Heads
from cutaway.errors import UserError
from cutaway.gguf import Later, Packed, made
from cutaway.layers.config import MLP, MoE, Norm
from cutaway.model.config import Block, Decoder, Encoder
from cutaway.position import rope
from cutaway.position.scaling import Factors, Linear, Llama3
from cutaway.weights import quant
from cutaway.weights.fields import EXPERTS, LAYERS, Fields, each_layer
from cutaway.weights.rules import Rule, row, same, stack

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
Announced = Mapping[str, Packed | Later]  # weights of which only types and shapes are looked at
ROPE_FREQS = "rope_freqs.weight"


def pairs(*names: tuple[str, str], parts: tuple[str, ...] = ("weight", "bias")) -> tuple[Rule, ...]:
    """Rules for modules whose weights are taken as they are."""
    return tuple(Rule(f"{theirs}.{part}", f"{ours}.{part}", same) for theirs, ours in names for part in parts)


def heads(count: int, kv_heads: int, window: int | None = None, **rest: Any) -> Heads:
    """The mechanism that these numbers describe: local if there is a window, else mha, mqa or gqa."""
    if window is not None:
        return local.Config(heads=count, kv_heads=kv_heads, window=window, **rest)
    if kv_heads == count:
        return mha.Config(heads=count, **rest)
    return (
        mqa.Config(heads=count, **rest)
        if kv_heads == 1
        else gqa.Config(heads=count, kv_heads=kv_heads, **rest)
    )


def shared(fields: Fields, width: int, count: int) -> int:
    """The size of a head that is not stated: its part of the width, which must come out even."""
    if width % count:
        raise UserError(f"{fields.where}: a width of {width} cannot be shared evenly by {count} heads")
    return width // count


def hf_head_size(fields: Fields, width: int, count: int) -> int:
    """The size of a head: stated, or its part of the width; even, since it is turned in pairs."""
    size = fields.integer("head_dim", None) or shared(fields, width, count)
    if size % 2:
        raise fields.refusal("head_dim", f"is {size}: rotary positions turn pairs, so it must be even")
    return size


def window_of(attention: Heads) -> int | None:
    """How many tokens a layer sees, if not all."""
    return attention.window if isinstance(attention, local.Config) else None


# ---- Hugging Face ------------------------------------------------------------------------------------------


def refuse_unsupported(fields: Fields) -> None:
    """What any config.json may ask for that no family here can honour."""
    quantised = fields.section("quantization_config")
    if quantised is not None:
        method = quantised.text("quant_method", "unknown")
        raise fields.refusal(
            "quantization_config",
            f"says the weights are quantised by {method!r}, which is not read: "
            "take the unquantised model, or a GGUF file of it",
        )


def hf_layers(fields: Fields, name: str = "num_hidden_layers") -> int:
    return fields.integer(name, high=LAYERS)


def hf_stack(fields: Fields, block: Callable[[int | None], Block]) -> tuple[Block, ...]:
    """The blocks of a model whose upper layers may be local: ``block(window)`` makes one (Qwen's layout)."""
    layers = hf_layers(fields)
    window = fields.integer("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    from_layer = fields.integer("max_window_layers", 28, low=0) if window else layers
    kinds = each_layer(fields, "layer_types", layers, ("sliding_attention", "full_attention"))
    is_local = [n >= from_layer for n in range(layers)] if kinds is None else [k[0] == "s" for k in kinds]
    if any(is_local) and window is None:
        raise fields.refusal("layer_types", "names sliding layers, but use_sliding_window is not true")
    full, near = block(None), block(window) if window else None
    return tuple(near if near and each else full for each in is_local)


def hf_windows(config: Decoder) -> dict[str, object]:
    """What ``hf_stack`` reads."""
    windows = [window_of(block.attention) for block in config.blocks]
    near = next((window for window in windows if window is not None), None)
    if near is None:
        return {"use_sliding_window": False}
    first = windows.index(near)
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return {
        "use_sliding_window": True,
        "sliding_window": near,
        "max_window_layers": first,
        "layer_types": kinds,
    }


def hf_rope(fields: Fields, size: int, base: float = 10000.0) -> rope.Config:
    """Rotary positions of a head of ``size``; ``base`` is the family's default."""
    parameters = fields.section("rope_parameters")
    if parameters is not None:
        return rope.Config(size, parameters.number("rope_theta", base, 1.0), hf_scaling(parameters))
    scaling = fields.section("rope_scaling")
    return rope.Config(
        size, fields.number("rope_theta", base, 1.0), None if scaling is None else hf_scaling(scaling)
    )


def hf_scaling(fields: Fields) -> Linear | Llama3 | None:
    """One of RoPE's scalings; UserError by name if it is another."""
    fields.only("partial_rotary_factor", 1.0, "turning a part of each head")
    known = {"default": None, "linear": Linear, "llama3": Llama3}
    word = "rope_type" if fields.get("rope_type") is not None else "type"
    kind = fields.choice(word, known, "default")
    if kind is Linear:
        return Linear(fields.number("factor"))
    if kind is Llama3:
        return Llama3(
            factor=fields.number("factor"),
            low=fields.number("low_freq_factor"),
            high=fields.number("high_freq_factor"),
            original=fields.integer("original_max_position_embeddings"),
        )
    return None


def hf_scaling_entry(position: rope.Config) -> dict[str, object] | None:
    """What ``rope_scaling`` says of it."""
    match position.scaling:
        case Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3(factor, low, high, original):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    return None


def hf_sizes(config: Decoder) -> dict[str, object]:
    """The entries that llama, qwen and gemma share."""
    block = config.blocks[0]
    attention = block.attention
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": block.mlp.hidden,
        "num_hidden_layers": len(config.blocks),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.groups,
        "head_dim": attention.key_size,
        "max_position_embeddings": config.context,
        "rms_norm_eps": block.norm.eps,
        "tie_word_embeddings": config.tied,
    }


def hf_rope_entries(config: Decoder) -> dict[str, object]:
    position = config.blocks[0].attention.position or rope.Config(1)
    return {"rope_theta": position.base, "rope_scaling": hf_scaling_entry(position)}


def hf_experts(fields: Fields, hidden: str, **own: Any) -> MoE:
    """The mixture of experts that the entries describe, of which ``hidden`` names the width; ``own``: what
    the family knows of it. How many there are has two names, of which transformers 5 writes the second.
    """
    count = "num_local_experts" if fields.get("num_experts") is None else "num_experts"
    experts = fields.integer(count, high=EXPERTS)
    return MoE(
        experts,
        fields.integer("num_experts_per_tok", high=experts),
        fields.integer(hidden),
        fields.choice("hidden_act", ACTIVATIONS, "silu"),
        **own,
    )


def hf_sparse_layers(fields: Fields, sparse: MoE) -> list[MLP | MoE]:
    """Each layer's MLP in Qwen's layout: sparse, but for those that are listed, or lie between steps."""
    layers, step = hf_layers(fields), fields.integer("decoder_sparse_step", 1)
    listed = fields.get("mlp_only_layers") or []
    if not isinstance(listed, list):
        raise fields.refusal("mlp_only_layers", f"should list numbers of layers, but is {listed!r}")
    is_dense = [n in listed or (n + 1) % step != 0 for n in range(layers)]
    dense = MLP(fields.integer("intermediate_size"), sparse.activation) if any(is_dense) else None
    return [dense if dense and each else sparse for each in is_dense]


def hf_sparse_entries(config: Decoder) -> dict[str, object]:
    """What ``hf_experts`` and ``hf_sparse_layers`` read of Qwen's configs."""
    sparse = first_sparse(config)
    dense = [n for n, block in enumerate(config.blocks) if isinstance(block.mlp, MLP)]
    return {
        "num_experts": sparse.experts,
        "num_experts_per_tok": sparse.top_k,
        "norm_topk_prob": sparse.normalised,
        "moe_intermediate_size": sparse.hidden,
        "intermediate_size": config.blocks[dense[0]].mlp.hidden if dense else sparse.hidden,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        "hidden_act": HF_ACTIVATIONS[sparse.activation],
    }


def first_sparse(config: Decoder) -> MoE:
    """The first of its mixtures of experts; the caller knows that there is one."""
    return next(block.mlp for block in config.blocks if isinstance(block.mlp, MoE))


# Names of the experts of Qwen's sparse models.
HF_EXPERTS = (
    Rule("model.layers.{n}.mlp.gate.weight", "blocks.{n}.mlp.router.weight", same),
    *pairs(
        ("model.layers.{n}.mlp.experts.{e}.gate_proj", "blocks.{n}.mlp.experts.{e}.gate"),
        ("model.layers.{n}.mlp.experts.{e}.up_proj", "blocks.{n}.mlp.experts.{e}.up"),
        ("model.layers.{n}.mlp.experts.{e}.down_proj", "blocks.{n}.mlp.experts.{e}.down"),
        parts=("weight",),
    ),
)

# Names of the blocks that llama, qwen and gemma share.
HF_DECODER = (
    Rule("model.embed_tokens.weight", "embedding.weight", same),
    *pairs(
        ("model.layers.{n}.self_attn.q_proj", "blocks.{n}.attention.query"),
        ("model.layers.{n}.self_attn.k_proj", "blocks.{n}.attention.key"),
        ("model.layers.{n}.self_attn.v_proj", "blocks.{n}.attention.value"),
        ("model.layers.{n}.self_attn.o_proj", "blocks.{n}.attention.out"),
        ("model.layers.{n}.mlp.gate_proj", "blocks.{n}.mlp.gate"),
        ("model.layers.{n}.mlp.up_proj", "blocks.{n}.mlp.up"),
        ("model.layers.{n}.mlp.down_proj", "blocks.{n}.mlp.down"),
    ),
    Rule("lm_head.weight", "head.weight", same),
)
HF_NORMS = pairs(
    ("model.layers.{n}.input_layernorm", "blocks.{n}.attention_norm"),
    ("model.layers.{n}.post_attention_layernorm", "blocks.{n}.mlp_norm"),
    ("model.norm", "norm"),
    parts=("weight",),
)


# ---- GGUF --------------------------------------------------------------------------------------------------


def gguf_layers(fields: Fields) -> int:
    return fields.integer("block_count", high=LAYERS)


def gguf_vocab(fields: Fields, tensors: Announced) -> int:
    """How many tokens there are: the rows of the embedding table, since older files have no key for it."""
    table = tensors.get("token_embd.weight")
    if table is None:
        raise UserError(f"{fields.where}: the weight 'token_embd.weight' is missing")
    rows = table.shape[0] if table.shape else 0
    fields.only("vocab_size", rows, f"a vocabulary of another size than the {rows} rows of token_embd.weight")
    return rows


def gguf_head_size(fields: Fields, width: int, count: int) -> int:
    """The size of a head; UserError if keys and values differ, or if only a part of a head is turned."""
    size = fields.integer("attention.key_length", None) or shared(fields, width, count)
    if size % 2:
        raise fields.refusal(
            "attention.key_length", f"is {size}: rotary positions turn pairs, so it must be even"
        )
    fields.only("attention.value_length", size, "values of another size than keys")
    fields.only("rope.dimension_count", size, "turning a part of each head")
    return size


def gguf_heads(
    fields: Fields, tensors: Announced, window: int | None = None, base: float = 10000.0, **own: Any
) -> Heads:
    """The attention that the metadata describe; ``own``: what the family knows of itself."""
    width, count = fields.integer("embedding_length"), fields.integer("attention.head_count")
    size = gguf_head_size(fields, width, count)
    described: dict[str, Any] = {
        "key_size": size,
        "bias": "blk.0.attn_q.bias" in tensors,
        "out_bias": "blk.0.attn_output.bias" in tensors,
    }
    if "position" not in own:
        described["position"] = gguf_rope(fields, size, tensors, base)
    return heads(count, fields.integer("attention.head_count_kv", count), window, **(described | own))


def gguf_decoder(
    fields: Fields,
    tensors: Announced,
    attention: Heads,
    activation: Any = "silu",
    post_norm: bool = False,
    experts: MoE | None = None,
) -> Decoder:
    """A stack of equal blocks with gated MLPs, or with ``experts``."""
    norm = Norm("rms", fields.number("attention.layer_norm_rms_epsilon"))
    mlp = experts
    if mlp is None:
        fields.only("expert_count", 0, "a mixture of experts")
        mlp = MLP(fields.integer("feed_forward_length"), activation, bias="blk.0.ffn_up.bias" in tensors)
    return Decoder(
        vocab=gguf_vocab(fields, tensors),
        width=fields.integer("embedding_length"),
        context=fields.integer("context_length"),
        blocks=(Block(attention, mlp, norm, post_norm),) * gguf_layers(fields),
        norm=norm,
        tied="output.weight" not in tensors,
    )


def gguf_experts(fields: Fields, hidden: str, **own: Any) -> MoE:
    """The experts that the metadata describe, of which ``hidden`` names the width."""
    fields.only("expert_gating_func", 1, "another score of experts than softmax")
    fields.only("expert_weights_scale", 1.0, "scaling what experts say")
    fields.only("expert_weights_norm", own.get("normalised", True), "weighing experts otherwise")
    experts = fields.integer("expert_count", high=EXPERTS)
    return MoE(experts, fields.integer("expert_used_count", high=experts), fields.integer(hidden), **own)


def gguf_expert_entries(config: Decoder) -> dict[str, object]:
    """What ``gguf_experts`` reads, but for the width."""
    sparse = first_sparse(config)
    return {"expert_count": sparse.experts, "expert_used_count": sparse.top_k}


def gguf_rope(fields: Fields, size: int, tensors: Announced, base: float = 10000.0) -> rope.Config:
    """Rotary positions, from the metadata and from the divisors that the file may carry as a tensor."""
    kind = fields.choice("rope.scaling.type", {"none": None, "linear": Linear}, "none")
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    scaling = (
        Linear(factor) if factor != 1.0 and (kind is Linear or fields.get("rope.scale_linear")) else None
    )
    position = rope.Config(size, fields.number("rope.freq_base", base, 1.0), scaling)
    if ROPE_FREQS not in tensors:
        return position
    if scaling is not None:
        raise fields.refusal("rope.scaling.type", f"and the weight {ROPE_FREQS!r} both scale positions")
    divisors = tensors[ROPE_FREQS]
    if divisors.type != "F32" or divisors.shape != (size // 2,):
        raise fields.refusal(
            "rope.dimension_count",
            f"asks for {size // 2} divisors as F32, but {ROPE_FREQS!r} is {divisors.type} {divisors.shape}",
        )
    original = fields.integer("rope.scaling.original_context_length", 8192)
    return rope.Config(
        size, position.base, recognised(position, quant.unpack(made(ROPE_FREQS, divisors)), original)
    )


def recognised(position: rope.Config, divisors: np.ndarray, original: int) -> Llama3 | Factors:
    """Llama 3's scaling where the divisors are the ones it makes, with the constants of its models; else
    themselves.
    """
    if not (np.isfinite(divisors) & (divisors > 0)).all():
        raise UserError(f"the weight {ROPE_FREQS!r} holds divisors that are not positive numbers")
    likely = Llama3(factor=float(str(divisors.max())), low=1.0, high=4.0, original=original)
    if likely.factor > 1 and np.allclose(divisors_of(position, likely), divisors, rtol=2e-6, atol=0):
        return likely
    return Factors(tuple(divisors.astype(np.float64).tolist()))


def divisors_of(position: rope.Config, scaling: Llama3 | Factors) -> np.ndarray:
    """float32 [size / 2]: by how much a scaling slows each pair."""
    plain = rope.Config(position.size, position.base).frequencies()
    return (plain / scaling.stretch(plain)).astype(np.float32)


def gguf_extras(config: Decoder | Encoder) -> dict[str, Packed]:
    """The tensor of divisors, for scalings that GGUF has no words for."""
    position = config.blocks[0].attention.position
    if position is None or not isinstance(position.scaling, Llama3 | Factors):
        return {}
    return {ROPE_FREQS: quant.pack(divisors_of(position, position.scaling), "F32")}


def gguf_sizes(config: Decoder | Encoder, attention: Heads | None = None) -> dict[str, object]:
    """The entries that all families share, without their prefix; ``attention`` is the first layer's unless
    given.
    """
    block = config.blocks[0]
    heads: Heads = block.attention if attention is None else attention
    out: dict[str, object] = {
        "vocab_size": config.vocab,
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": len(config.blocks),
        "feed_forward_length": block.mlp.hidden,
        "attention.head_count": heads.heads,
        "attention.head_count_kv": heads.groups,
        f"attention.layer_norm_{'rms_' if block.norm.kind == 'rms' else ''}epsilon": block.norm.eps,
    }
    if heads.position is None:
        return out
    out |= {
        "attention.key_length": heads.key_size,
        "attention.value_length": heads.values,
        "rope.dimension_count": heads.position.size,
        "rope.freq_base": float(heads.position.base),
    }
    if isinstance(heads.position.scaling, Llama3):
        out["rope.scaling.original_context_length"] = heads.position.scaling.original
    if isinstance(heads.position.scaling, Linear):
        out |= {
            "rope.scaling.type": "linear",
            "rope.scaling.factor": float(heads.position.scaling.factor),
        }
    return out


GGUF_DECODER = (
    Rule("token_embd.weight", "embedding.weight", same),
    *pairs(
        ("blk.{n}.attn_v", "blocks.{n}.attention.value"),
        ("blk.{n}.attn_output", "blocks.{n}.attention.out"),
        ("blk.{n}.attn_norm", "blocks.{n}.attention_norm"),
        ("blk.{n}.ffn_gate", "blocks.{n}.mlp.gate"),
        ("blk.{n}.ffn_up", "blocks.{n}.mlp.up"),
        ("blk.{n}.ffn_down", "blocks.{n}.mlp.down"),
        ("blk.{n}.ffn_norm", "blocks.{n}.mlp_norm"),
        ("output_norm", "norm"),
    ),
    Rule("output.weight", "head.weight", same),
)
GGUF_QUERY_KEY = pairs(
    ("blk.{n}.attn_q", "blocks.{n}.attention.query"), ("blk.{n}.attn_k", "blocks.{n}.attention.key")
)
GGUF_EXPERTS = (
    Rule("blk.{n}.ffn_gate_inp.weight", "blocks.{n}.mlp.router.weight", same),
    Rule("blk.{n}.ffn_gate_exps.weight", "blocks.{n}.mlp.experts.{e}.gate.weight", stack),
    Rule("blk.{n}.ffn_up_exps.weight", "blocks.{n}.mlp.experts.{e}.up.weight", stack),
    Rule("blk.{n}.ffn_down_exps.weight", "blocks.{n}.mlp.experts.{e}.down.weight", stack),
)
GGUF_SHARED_EXPERT = (
    Rule("blk.{n}.ffn_gate_inp_shexp.weight", "blocks.{n}.mlp.shared_gate.weight", row),
    *pairs(
        ("blk.{n}.ffn_gate_shexp", "blocks.{n}.mlp.shared.gate"),
        ("blk.{n}.ffn_up_shexp", "blocks.{n}.mlp.shared.up"),
        ("blk.{n}.ffn_down_shexp", "blocks.{n}.mlp.shared.down"),
        parts=("weight",),
    ),
)
