"""Llama (2302.13971, 2307.09288, 2407.21783) and what shares its shape: Mistral (2310.06825), SmolLM."""

from cutaway.layers.config import MLP, Norm
from cutaway.model.config import Block, Decoder
from cutaway.weights import common
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule, unpermute

HF_TYPES = ("llama", "mistral", "smollm")
GGUF_ARCHITECTURES = ("llama",)
HF_PREFIX = "model."
IGNORED_HF = ("model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
IGNORED_GGUF = (common.ROPE_FREQS,)

HF = (*common.HF_DECODER, *common.HF_NORMS)
GGUF = (
    *common.GGUF_DECODER,
    Rule("blk.{n}.attn_q.weight", "blocks.{n}.attention.query.weight", unpermute("heads")),
    Rule("blk.{n}.attn_q.bias", "blocks.{n}.attention.query.bias", unpermute("heads")),
    Rule("blk.{n}.attn_k.weight", "blocks.{n}.attention.key.weight", unpermute("groups")),
    Rule("blk.{n}.attn_k.bias", "blocks.{n}.attention.key.bias", unpermute("groups")),
)


def from_hf(fields: Fields) -> Decoder:
    mistral = fields.get("model_type") == "mistral"
    width = fields.integer("hidden_size")
    count = fields.integer("num_attention_heads")
    size = common.hf_head_size(fields, width, count)
    norm = Norm("rms", fields.number("rms_norm_eps", 1e-6))
    attention = common.heads(
        count,
        fields.integer("num_key_value_heads", 8 if mistral else count),
        _window(fields) if mistral else None,
        key_size=size,
        position=common.hf_rope(fields, size),
        bias=fields.flag("attention_bias", False),
        out_bias=fields.flag("attention_bias", False),
    )
    mlp = MLP(
        fields.integer("intermediate_size"),
        fields.choice("hidden_act", common.ACTIVATIONS, "silu"),
        bias=fields.flag("mlp_bias", False),
    )
    return Decoder(
        vocab=fields.integer("vocab_size"),
        width=width,
        context=fields.integer("max_position_embeddings", 131072 if mistral else 2048),
        blocks=(Block(attention, mlp, norm),) * common.hf_layers(fields),
        norm=norm,
        tied=fields.flag("tie_word_embeddings", False),
    )


def _window(fields: Fields) -> int | None:
    """Mistral's window: none if the config says null, 4096 if it does not say."""
    return fields.integer("sliding_window", None if "sliding_window" in fields.data else 4096)


def to_hf(config: Decoder) -> dict[str, object]:
    block = config.blocks[0]
    window = common.window_of(block.attention)
    name = "Llama" if window is None else "Mistral"
    own: dict[str, object] = {}
    if window is None and isinstance(block.mlp, MLP):
        own = {"attention_bias": block.attention.bias, "mlp_bias": block.mlp.bias}
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": name.lower(),
        **common.hf_sizes(config),
        **common.hf_rope_entries(config),
        "hidden_act": common.HF_ACTIVATIONS[block.mlp.activation],
        **own,
        **({} if window is None else {"sliding_window": window}),
    }


def from_gguf(fields: Fields, tensors: common.Announced) -> Decoder:
    return common.gguf_decoder(fields, tensors, common.gguf_heads(fields, tensors))


def to_gguf(config: Decoder) -> dict[str, object]:
    return common.gguf_sizes(config)
