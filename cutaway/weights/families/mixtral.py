"""Mixtral (2401.04088): Mistral's block with a mixture of experts for its MLP. In GGUF it is a llama that has
experts.
"""

from cutaway.layers.config import Norm
from cutaway.model.config import Block, Decoder
from cutaway.weights import common
from cutaway.weights.families import llama
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule, same

HF_TYPES = ("mixtral",)
GGUF_ARCHITECTURES = ("llama",)
HF_PREFIX = "model."
IGNORED_HF = ("model.layers.*.self_attn.rotary_emb.inv_freq",)
IGNORED_GGUF = (common.ROPE_FREQS,)
SPARSE = True

HF = (
    *common.HF_DECODER,
    *common.HF_NORMS,
    Rule("model.layers.{n}.block_sparse_moe.gate.weight", "blocks.{n}.mlp.router.weight", same),
    *common.pairs(
        ("model.layers.{n}.block_sparse_moe.experts.{e}.w1", "blocks.{n}.mlp.experts.{e}.gate"),
        ("model.layers.{n}.block_sparse_moe.experts.{e}.w3", "blocks.{n}.mlp.experts.{e}.up"),
        ("model.layers.{n}.block_sparse_moe.experts.{e}.w2", "blocks.{n}.mlp.experts.{e}.down"),
        parts=("weight",),
    ),
)
GGUF = (*llama.GGUF, *common.GGUF_EXPERTS)


def from_hf(fields: Fields) -> Decoder:
    width = fields.integer("hidden_size")
    count = fields.integer("num_attention_heads")
    size = common.hf_head_size(fields, width, count)
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-5))
    attention = common.heads(
        count,
        fields.integer("num_key_value_heads", 8),
        fields.integer("sliding_window", None),
        key_size=size,
        position=common.hf_rope(fields, size),
    )
    experts = common.hf_experts(fields, "intermediate_size")
    return Decoder(
        vocab=fields.integer("vocab_size"),
        width=width,
        context=fields.integer("max_position_embeddings", 131072),
        blocks=(Block(attention, experts, norm),) * common.hf_layers(fields),
        norm=norm,
        tied=fields.flag("tie_word_embeddings", False),
    )


def to_hf(config: Decoder) -> dict[str, object]:
    block, sparse = config.blocks[0], common.first_sparse(config)
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **common.hf_sizes(config),
        **common.hf_rope_entries(config),
        "hidden_act": common.HF_ACTIVATIONS[sparse.activation],
        "num_local_experts": sparse.experts,
        "num_experts_per_tok": sparse.top_k,
        "sliding_window": common.window_of(block.attention),
    }


def from_gguf(fields: Fields, tensors: common.Announced) -> Decoder:
    experts = common.gguf_experts(fields, "feed_forward_length")
    return common.gguf_decoder(fields, tensors, common.gguf_heads(fields, tensors), experts=experts)


def to_gguf(config: Decoder) -> dict[str, object]:
    return {**common.gguf_sizes(config), **common.gguf_expert_entries(config)}
