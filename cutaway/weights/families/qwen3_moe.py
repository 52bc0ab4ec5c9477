"""Qwen 3 MoE (2505.09388): Qwen 3's block with a mixture of many small experts, none of which all tokens
pass.
"""

from cutaway.layers.config import Norm
from cutaway.model.config import Block, Decoder
from cutaway.weights import common
from cutaway.weights.families import qwen3
from cutaway.weights.fields import Fields

HF_TYPES = ("qwen3_moe",)
GGUF_ARCHITECTURES = ("qwen3moe",)
HF_PREFIX = "model."
IGNORED_HF = ("model.layers.*.self_attn.rotary_emb.inv_freq",)
IGNORED_GGUF = ()
SPARSE = True

HF = (*qwen3.HF, *common.HF_EXPERTS)
GGUF = (*qwen3.GGUF, *common.GGUF_EXPERTS)


def from_hf(fields: Fields) -> Decoder:
    width = fields.integer("hidden_size")
    count = fields.integer("num_attention_heads")
    size = common.hf_head_size(fields, width, count)
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-6))
    fields.only("use_sliding_window", False, "a window in a mixture of experts")
    attention = common.heads(
        count,
        fields.integer("num_key_value_heads", 4),
        key_size=size,
        position=common.hf_rope(fields, size),
        qk_norm=norm,
        bias=fields.flag("attention_bias", False),
        out_bias=fields.flag("attention_bias", False),
    )
    experts = common.hf_experts(
        fields, "moe_intermediate_size", normalised=fields.flag("norm_topk_prob", False)
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
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **common.hf_sizes(config),
        **common.hf_rope_entries(config),
        **common.hf_sparse_entries(config),
        "attention_bias": config.blocks[0].attention.bias,
        "use_sliding_window": False,
    }


def from_gguf(fields: Fields, tensors: common.Announced) -> Decoder:
    norm = Norm("rms", fields.number("attention.layer_norm_rms_epsilon"))
    experts = common.gguf_experts(fields, "expert_feed_forward_length")
    attention = common.gguf_heads(fields, tensors, qk_norm=norm)
    return common.gguf_decoder(fields, tensors, attention, experts=experts)


def to_gguf(config: Decoder) -> dict[str, object]:
    return {
        **common.gguf_sizes(config),
        **common.gguf_expert_entries(config),
        "expert_feed_forward_length": common.first_sparse(config).hidden,
    }
