"""BERT (1810.04805) and what has its shape: MiniLM (2002.10957), BGE, E5, GTE.

What BERT was pretrained with (the pooler and the heads that guess words and next sentences) belongs to those
tasks and is not read: the model is the encoder, and what it gives are the vectors of its tokens.
"""

from cutaway.attention import bidirectional
from cutaway.errors import UserError
from cutaway.layers.config import MLP, Norm
from cutaway.model.config import Block, Encoder
from cutaway.weights import common
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule, same

DESCRIBES = Encoder
HF_TYPES = ("bert",)
GGUF_ARCHITECTURES = ("bert",)
HF_PREFIX = "bert."
IGNORED_HF = ("bert.embeddings.position_ids", "bert.pooler.*", "cls.*", "bert.cls.*")
IGNORED_GGUF = ("cls.*",)

HF = (
    Rule("bert.embeddings.word_embeddings.weight", "embedding.weight", same),
    Rule("bert.embeddings.position_embeddings.weight", "position.weight", same),
    Rule("bert.embeddings.token_type_embeddings.weight", "segment.weight", same),
    *common.pairs(
        ("bert.embeddings.LayerNorm", "norm"),
        ("bert.encoder.layer.{n}.attention.self.query", "blocks.{n}.attention.query"),
        ("bert.encoder.layer.{n}.attention.self.key", "blocks.{n}.attention.key"),
        ("bert.encoder.layer.{n}.attention.self.value", "blocks.{n}.attention.value"),
        ("bert.encoder.layer.{n}.attention.output.dense", "blocks.{n}.attention.out"),
        ("bert.encoder.layer.{n}.attention.output.LayerNorm", "blocks.{n}.attention_norm"),
        ("bert.encoder.layer.{n}.intermediate.dense", "blocks.{n}.mlp.up"),
        ("bert.encoder.layer.{n}.output.dense", "blocks.{n}.mlp.down"),
        ("bert.encoder.layer.{n}.output.LayerNorm", "blocks.{n}.mlp_norm"),
    ),
)
GGUF = (
    Rule("token_embd.weight", "embedding.weight", same),
    Rule("position_embd.weight", "position.weight", same),
    Rule("token_types.weight", "segment.weight", same),
    *common.pairs(
        ("token_embd_norm", "norm"),
        ("blk.{n}.attn_q", "blocks.{n}.attention.query"),
        ("blk.{n}.attn_k", "blocks.{n}.attention.key"),
        ("blk.{n}.attn_v", "blocks.{n}.attention.value"),
        ("blk.{n}.attn_output", "blocks.{n}.attention.out"),
        ("blk.{n}.attn_output_norm", "blocks.{n}.attention_norm"),
        ("blk.{n}.ffn_up", "blocks.{n}.mlp.up"),
        ("blk.{n}.ffn_down", "blocks.{n}.mlp.down"),
        ("blk.{n}.layer_output_norm", "blocks.{n}.mlp_norm"),
    ),
)


def from_hf(fields: Fields) -> Encoder:
    fields.only("position_embedding_type", "absolute", "another kind of positions")
    fields.only("is_decoder", False, "BERT as a decoder")
    fields.only("add_cross_attention", False, "cross-attention")
    return _encoder(
        fields,
        vocab=fields.integer("vocab_size", 30522),
        width=fields.integer("hidden_size", 768),
        context=fields.integer("max_position_embeddings", 512),
        segments=fields.integer("type_vocab_size", 2),
        layers=fields.integer("num_hidden_layers", 12, high=common.LAYERS),
        heads=fields.integer("num_attention_heads", 12),
        mlp=MLP(
            fields.integer("intermediate_size", 3072),
            fields.choice("hidden_act", common.ACTIVATIONS, "gelu"),
            gated=False,
            bias=True,
        ),
        eps=fields.number("layer_norm_eps", 1e-12),
    )


def _encoder(
    fields: Fields,
    *,
    vocab: int,
    width: int,
    context: int,
    segments: int,
    layers: int,
    heads: int,
    mlp: MLP,
    eps: float,
) -> Encoder:
    size, norm = common.shared(fields, width, heads), Norm("layer", eps)
    attention = bidirectional.Config(heads=heads, kv_heads=heads, key_size=size, bias=True, out_bias=True)
    return Encoder(vocab, width, context, (Block(attention, mlp, norm),) * layers, norm, segments)


def to_hf(config: Encoder) -> dict[str, object]:
    block = config.blocks[0]
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "max_position_embeddings": config.context,
        "type_vocab_size": config.segments,
        "num_hidden_layers": len(config.blocks),
        "num_attention_heads": block.attention.heads,
        "intermediate_size": block.mlp.hidden,
        "hidden_act": common.HF_ACTIVATIONS[block.mlp.activation],
        "layer_norm_eps": block.norm.eps,
        "position_embedding_type": "absolute",
    }


def from_gguf(fields: Fields, tensors: common.Announced) -> Encoder:
    fields.only("attention.causal", False, "BERT that reads the past alone")
    heads = fields.integer("attention.head_count")
    fields.only("attention.head_count_kv", heads, "fewer key-value heads than query heads")
    kinds = tensors.get("token_types.weight")
    if kinds is None or not kinds.shape:
        raise UserError(f"{fields.where}: the weight 'token_types.weight' is missing")
    return _encoder(
        fields,
        vocab=common.gguf_vocab(fields, tensors),
        width=fields.integer("embedding_length"),
        context=fields.integer("context_length"),
        segments=kinds.shape[0],
        layers=common.gguf_layers(fields),
        heads=heads,
        mlp=MLP(fields.integer("feed_forward_length"), "gelu", gated=False, bias=True),
        eps=fields.number("attention.layer_norm_epsilon"),
    )


def to_gguf(config: Encoder) -> dict[str, object]:
    return {**common.gguf_sizes(config), "attention.causal": False}
