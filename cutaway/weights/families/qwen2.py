"""Qwen 2 and 2.5 (2407.10671): llama's block with a bias on query, key and value, and windows in its upper
layers.
"""

from cutaway.layers.config import MLP, Norm
from cutaway.model.config import Block, Decoder
from cutaway.weights import common
from cutaway.weights.fields import Fields

HF_TYPES = ("qwen2",)
GGUF_ARCHITECTURES = ("qwen2",)
HF_PREFIX = "model."
IGNORED_HF = ("model.layers.*.self_attn.rotary_emb.inv_freq",)
IGNORED_GGUF = ()

HF = (*common.HF_DECODER, *common.HF_NORMS)
GGUF = (*common.GGUF_DECODER, *common.GGUF_QUERY_KEY)


def from_hf(fields: Fields) -> Decoder:
    width = fields.integer("hidden_size")
    count = fields.integer("num_attention_heads")
    size = common.hf_head_size(fields, width, count)
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-6))
    mlp = MLP(fields.integer("intermediate_size"), fields.choice("hidden_act", common.ACTIVATIONS, "silu"))

    def block(window: int | None) -> Block:
        kv_heads, position = fields.integer("num_key_value_heads", count), common.hf_rope(fields, size)
        return Block(
            common.heads(count, kv_heads, window, key_size=size, position=position, bias=True), mlp, norm
        )

    return Decoder(
        vocab=fields.integer("vocab_size"),
        width=width,
        context=fields.integer("max_position_embeddings", 32768),
        blocks=common.hf_stack(fields, block),
        norm=norm,
        tied=fields.flag("tie_word_embeddings", False),
    )


def to_hf(config: Decoder) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **common.hf_sizes(config),
        **common.hf_rope_entries(config),
        **common.hf_windows(config),
        "hidden_act": common.HF_ACTIVATIONS[config.blocks[0].mlp.activation],
    }


def from_gguf(fields: Fields, tensors: common.Announced) -> Decoder:
    attention = common.gguf_heads(fields, tensors, bias=True)
    return common.gguf_decoder(fields, tensors, attention)


def to_gguf(config: Decoder) -> dict[str, object]:
    return common.gguf_sizes(config)
