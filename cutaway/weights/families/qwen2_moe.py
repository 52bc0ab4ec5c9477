"""Qwen 2 MoE (2407.10671): Qwen 2's block with many small experts, whose weights are their shares among all,
and one that every token passes, times a gate.
"""

from cutaway.layers.config import Norm
from cutaway.model.config import Block, Decoder
from cutaway.weights import common
from cutaway.weights.fields import Fields, each_layer
from cutaway.weights.rules import Rule, same

HF_TYPES = ("qwen2_moe",)
GGUF_ARCHITECTURES = ("qwen2moe",)
HF_PREFIX = "model."
IGNORED_HF = ("model.layers.*.self_attn.rotary_emb.inv_freq",)
IGNORED_GGUF = ()
SPARSE = True

HF = (
    *common.HF_DECODER,
    *common.HF_NORMS,
    *common.HF_EXPERTS,
    *common.pairs(
        ("model.layers.{n}.mlp.shared_expert.gate_proj", "blocks.{n}.mlp.shared.gate"),
        ("model.layers.{n}.mlp.shared_expert.up_proj", "blocks.{n}.mlp.shared.up"),
        ("model.layers.{n}.mlp.shared_expert.down_proj", "blocks.{n}.mlp.shared.down"),
        parts=("weight",),
    ),
    Rule("model.layers.{n}.mlp.shared_expert_gate.weight", "blocks.{n}.mlp.shared_gate.weight", same),
)
GGUF = (
    *common.GGUF_DECODER,
    *common.GGUF_QUERY_KEY,
    *common.GGUF_EXPERTS,
    *common.GGUF_SHARED_EXPERT,
)


def from_hf(fields: Fields) -> Decoder:
    width = fields.integer("hidden_size")
    count = fields.integer("num_attention_heads")
    size = common.hf_head_size(fields, width, count)
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-6))
    fields.only("use_sliding_window", False, "a window in a mixture of experts")
    each_layer(fields, "layer_types", common.hf_layers(fields), ("full_attention",))
    attention = common.heads(
        count,
        fields.integer("num_key_value_heads", count),
        key_size=size,
        position=common.hf_rope(fields, size),
        bias=fields.flag("qkv_bias", True),
    )
    experts = common.hf_experts(
        fields,
        "moe_intermediate_size",
        normalised=fields.flag("norm_topk_prob", False),
        shared=fields.integer("shared_expert_intermediate_size"),
        shared_gate=True,
    )
    return Decoder(
        vocab=fields.integer("vocab_size"),
        width=width,
        context=fields.integer("max_position_embeddings", 32768),
        blocks=tuple(Block(attention, mlp, norm) for mlp in common.hf_sparse_layers(fields, experts)),
        norm=norm,
        tied=fields.flag("tie_word_embeddings", False),
    )


def to_hf(config: Decoder) -> dict[str, object]:
    return {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        **common.hf_sizes(config),
        **common.hf_rope_entries(config),
        **common.hf_sparse_entries(config),
        "shared_expert_intermediate_size": common.first_sparse(config).shared,
        "qkv_bias": config.blocks[0].attention.bias,
        "use_sliding_window": False,
    }


def from_gguf(fields: Fields, tensors: common.Announced) -> Decoder:
    experts = common.gguf_experts(
        fields,
        "expert_feed_forward_length",
        normalised=False,
        shared=fields.integer("expert_shared_feed_forward_length"),
        shared_gate=True,
    )
    attention = common.gguf_heads(fields, tensors, bias=True)
    return common.gguf_decoder(fields, tensors, attention, experts=experts)


def to_gguf(config: Decoder) -> dict[str, object]:
    sparse = common.first_sparse(config)
    return {
        **common.gguf_sizes(config),
        **common.gguf_expert_entries(config),
        "expert_feed_forward_length": sparse.hidden,
        "expert_shared_feed_forward_length": sparse.shared,
    }
