"""Qwen 3 (2505.09388): llama's block with each head's query and key normed before they are turned."""

from cutaway.layers.config import MLP, Norm
from cutaway.model.config import Block, Decoder
from cutaway.weights import common
from cutaway.weights.fields import Fields

HF_TYPES = ("qwen3",)
GGUF_ARCHITECTURES = ("qwen3",)
HF_PREFIX = "model."
IGNORED_HF = ("model.layers.*.self_attn.rotary_emb.inv_freq",)
IGNORED_GGUF = ()

HF = (
    *common.HF_DECODER,
    *common.HF_NORMS,
    *common.pairs(
        ("model.layers.{n}.self_attn.q_norm", "blocks.{n}.attention.query_norm"),
        ("model.layers.{n}.self_attn.k_norm", "blocks.{n}.attention.key_norm"),
        parts=("weight",),
    ),
)
GGUF = (
    *common.GGUF_DECODER,
    *common.GGUF_QUERY_KEY,
    *common.pairs(
        ("blk.{n}.attn_q_norm", "blocks.{n}.attention.query_norm"),
        ("blk.{n}.attn_k_norm", "blocks.{n}.attention.key_norm"),
        parts=("weight",),
    ),
)


def from_hf(fields: Fields) -> Decoder:
    width = fields.integer("hidden_size")
    count = fields.integer("num_attention_heads")
    size = fields.integer("head_dim", 128)
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-6))
    mlp = MLP(fields.integer("intermediate_size"), fields.choice("hidden_act", common.ACTIVATIONS, "silu"))

    def block(window: int | None) -> Block:
        attention = common.heads(
            count,
            fields.integer("num_key_value_heads", 32),
            window,
            key_size=size,
            position=common.hf_rope(fields, size),
            qk_norm=norm,
            bias=fields.flag("attention_bias", False),
            out_bias=fields.flag("attention_bias", False),
        )
        return Block(attention, mlp, norm)

    return Decoder(
        vocab=fields.integer("vocab_size"),
        width=width,
        context=fields.integer("max_position_embeddings", 32768),
        blocks=common.hf_stack(fields, block),
        norm=norm,
        tied=fields.flag("tie_word_embeddings", False),
    )


def to_hf(config: Decoder) -> dict[str, object]:
    block = config.blocks[0]
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **common.hf_sizes(config),
        **common.hf_rope_entries(config),
        **common.hf_windows(config),
        "hidden_act": common.HF_ACTIVATIONS[block.mlp.activation],
        "attention_bias": block.attention.bias,
    }


def from_gguf(fields: Fields, tensors: common.Announced) -> Decoder:
    norm = Norm("rms", fields.number("attention.layer_norm_rms_epsilon"))
    return common.gguf_decoder(fields, tensors, common.gguf_heads(fields, tensors, qk_norm=norm))


def to_gguf(config: Decoder) -> dict[str, object]:
    return common.gguf_sizes(config)
