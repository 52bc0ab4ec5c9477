"""GPT-2: learned positions, layer norms, biases everywhere, and query, key and value in one matrix.

(Language Models are Unsupervised Multitask Learners, 2019.) Hugging Face stores its matrices [in out].
"""

from cutaway.attention import mha
from cutaway.layers.config import MLP, Norm
from cutaway.model.config import Block, Decoder
from cutaway.position import learned
from cutaway.weights import common
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule, chain, same, split, transpose

HF_TYPES = ("gpt2",)
GGUF_ARCHITECTURES = ("gpt2",)
HF_PREFIX = "transformer."
IGNORED_HF = ("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias")
IGNORED_GGUF = ()

QUERY_KEY_VALUE = tuple(f"blocks.{{n}}.attention.{name}" for name in ("query", "key", "value"))
WEIGHTS = tuple(f"{name}.weight" for name in QUERY_KEY_VALUE)
BIASES = tuple(f"{name}.bias" for name in QUERY_KEY_VALUE)
TURNED = {
    "transformer.h.{n}.attn.c_proj": "blocks.{n}.attention.out",
    "transformer.h.{n}.mlp.c_fc": "blocks.{n}.mlp.up",
    "transformer.h.{n}.mlp.c_proj": "blocks.{n}.mlp.down",
}
HF = (
    Rule("transformer.wte.weight", "embedding.weight", same),
    Rule("transformer.wpe.weight", "position.weight", same),
    *common.pairs(
        ("transformer.h.{n}.ln_1", "blocks.{n}.attention_norm"),
        ("transformer.h.{n}.ln_2", "blocks.{n}.mlp_norm"),
        ("transformer.ln_f", "norm"),
    ),
    Rule("transformer.h.{n}.attn.c_attn.weight", WEIGHTS, chain(transpose, split)),
    Rule("transformer.h.{n}.attn.c_attn.bias", BIASES, split),
    *(Rule(f"{theirs}.weight", f"{ours}.weight", transpose) for theirs, ours in TURNED.items()),
    *(Rule(f"{theirs}.bias", f"{ours}.bias", same) for theirs, ours in TURNED.items()),
    Rule("lm_head.weight", "head.weight", same),
)
GGUF = (
    Rule("token_embd.weight", "embedding.weight", same),
    Rule("position_embd.weight", "position.weight", same),
    *common.pairs(
        ("blk.{n}.attn_norm", "blocks.{n}.attention_norm"),
        ("blk.{n}.attn_output", "blocks.{n}.attention.out"),
        ("blk.{n}.ffn_norm", "blocks.{n}.mlp_norm"),
        ("blk.{n}.ffn_up", "blocks.{n}.mlp.up"),
        ("blk.{n}.ffn_down", "blocks.{n}.mlp.down"),
        ("output_norm", "norm"),
    ),
    Rule("blk.{n}.attn_qkv.weight", WEIGHTS, split),
    Rule("blk.{n}.attn_qkv.bias", BIASES, split),
    Rule("output.weight", "head.weight", same),
)


def from_hf(fields: Fields) -> Decoder:
    fields.only("scale_attn_weights", True, "attention that is not scaled")
    fields.only("scale_attn_by_inverse_layer_idx", False, "attention scaled by its layer")
    fields.only("add_cross_attention", False, "cross-attention")
    width = fields.integer("n_embd", 768)
    hidden = fields.integer("n_inner", 4 * width)
    activation = fields.choice("activation_function", common.ACTIVATIONS, "gelu_new")
    return _decoder(
        fields,
        vocab=fields.integer("vocab_size", 50257),
        width=width,
        context=fields.integer("n_positions", 1024),
        layers=common.hf_layers(fields, "n_layer"),
        heads=fields.integer("n_head", 12),
        mlp=MLP(hidden, activation, gated=False, bias=True),
        norm=Norm("layer", fields.number("layer_norm_epsilon", 1e-5)),
        tied=fields.flag("tie_word_embeddings", True),
    )


def _decoder(
    fields: Fields,
    *,
    vocab: int,
    width: int,
    context: int,
    layers: int,
    heads: int,
    mlp: MLP,
    norm: Norm,
    tied: bool,
) -> Decoder:
    attention = mha.Config(
        heads=heads, key_size=common.shared(fields, width, heads), bias=True, out_bias=True
    )
    blocks = (Block(attention, mlp, norm),) * layers
    return Decoder(vocab, width, context, blocks, norm, tied, position=learned.Config(context))


def to_hf(config: Decoder) -> dict[str, object]:
    block = config.blocks[0]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab,
        "n_embd": config.width,
        "n_positions": config.context,
        "n_ctx": config.context,
        "n_layer": len(config.blocks),
        "n_head": block.attention.heads,
        "n_inner": block.mlp.hidden,
        "activation_function": "gelu_new" if block.mlp.activation == "gelu_tanh" else block.mlp.activation,
        "layer_norm_epsilon": block.norm.eps,
        "tie_word_embeddings": config.tied,
    }


def from_gguf(fields: Fields, tensors: common.Announced) -> Decoder:
    width = fields.integer("embedding_length")
    heads = fields.integer("attention.head_count")
    fields.only("attention.head_count_kv", heads, "fewer key-value heads than query heads")
    return _decoder(
        fields,
        vocab=common.gguf_vocab(fields, tensors),
        width=width,
        context=fields.integer("context_length"),
        layers=common.gguf_layers(fields),
        heads=heads,
        mlp=MLP(fields.integer("feed_forward_length"), "gelu_tanh", gated=False, bias=True),
        norm=Norm("layer", fields.number("attention.layer_norm_epsilon")),
        tied="output.weight" not in tensors,
    )


def to_gguf(config: Decoder) -> dict[str, object]:
    return common.gguf_sizes(config)
