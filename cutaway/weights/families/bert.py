"""BERT (1810.04805) and models of its shape: MiniLM (2002.10957), BGE, E5, GTE.

The pooler and the heads of its pretraining (masked words, next sentences) belong to those tasks and are not
read: the model is the encoder, and its outputs are the vectors of the tokens.
"""

from dataclasses import dataclass

from cutaway.attention import bidirectional
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Encoder
from cutaway.weights import decoders, naming, rows
from cutaway.weights.classifier_head import Head
from cutaway.weights.family import (
    FLAG,
    LAYER_COUNT,
    NUMBER,
    Entries,
    Family,
    Field,
    Kind,
    Only,
    Row,
    Settings,
    shared,
)
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

HF = (
    Rule("bert.embeddings.word_embeddings.weight", "embedding.weight", same),
    Rule("bert.embeddings.position_embeddings.weight", "position.weight", same),
    Rule("bert.embeddings.token_type_embeddings.weight", "segment.weight", same),
    *naming.pairs(
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
    *naming.pairs(
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


FROM_NONE = Kind(lambda fields, key: fields.integer(key, low=0))


class Segments(Field):
    """The number of segments; in GGUF the rows of their table, if it is there."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        table = "token_types.weight"
        return {"segments": rows.rows_of(fields, table) if table in fields.tensors else 0}


@dataclass(frozen=True)
class EmbeddingWidth(Row):
    """The width of embeddings that have one of their own, by its key and what it is where it is left out.

    ``always``: a matrix takes them to the model's width also where the two are equal.
    """

    key: str
    usual: int | None
    always: bool = False

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        size = fields.integer(self.key, self.usual if self.usual or fields.has(self.key) else known["width"])
        if size is None:
            size = known["width"]
        return {"embedding_width": size if self.always or size != known["width"] else None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf else {self.key: known["embedding_width"] or known["width"]}


def encoder(known: Settings) -> Encoder:
    """The encoder of these settings."""
    heads, norm = known["heads"], Norm("layer", known["eps"])
    biased = known.get("bias", True)
    attention = bidirectional.Config(
        heads=heads,
        kv_heads=heads,
        key_size=known.get("head_size") or shared(known),
        position=known.get("rope"),
        relative=known.get("relative"),
        bias=biased,
        out_bias=biased,
    )
    attention = known.get("mixer") or attention
    gated = known.get("gated", False)
    mlp = MLP(
        known["hidden"],
        known["activation"],
        gated,
        bias=known.get("mlp_bias", not gated),
        down_bias=known.get("down_bias", False),
    )
    return Encoder(
        known["vocab"],
        known["width"],
        known["context"],
        (Block(attention, mlp, norm),) * known.get("distinct", known["layers"]),
        norm,
        **{name: known[name] for name in decoders.OF_ENCODER if name in known},
    )


FAMILY = Family(
    "bert",
    "BertModel",
    hf=HF,
    gguf=GGUF,
    rows=(
        Field("layers", "num_hidden_layers", "block_count", LAYER_COUNT),
        rows.Vocab("vocab", "vocab_size", "vocab_size"),
        Field("width", "hidden_size", "embedding_length"),
        Field("context", "max_position_embeddings", "context_length"),
        Segments("segments", "type_vocab_size", None),
        Field("heads", "num_attention_heads", "attention.head_count", each_layer=True),
        Field("kv_heads", None, "attention.head_count_kv"),
        Field("hidden", "intermediate_size", "feed_forward_length", each_layer=True),
        Field("eps", "layer_norm_eps", "attention.layer_norm_epsilon", NUMBER),
        Field("activation", "hidden_act", None, rows.ACTIVATION),
        Field("causal", None, "attention.causal", FLAG),
        Only("position_embedding_type", None, ("absolute",), "another kind of positions"),
        Only("is_decoder", None, (False,), "BERT as a decoder"),
        *rows.ONE_MLP,
        *rows.ANY,
    ),
    build=encoder,
    describe=decoders.settings,
    defaults={"vocab": 30522, "width": 768, "hidden": 3072, "layers": 12, "heads": 12, "context": 512}
    | {"segments": 2, "eps": 1e-12, "activation": "gelu"},
    gguf_fixed={"activation": "gelu", "causal": False, "kv_heads": rows.same_heads},
    config=Encoder,
    head=Head(),
    prefix="bert.",
    harmless=(
        *("tie_word_embeddings", "gradient_checkpointing"),
        *("sentence_transformers", "sbert_ce_default_activation_function"),  # read by weights/classifier.py
    ),
    ignored_hf=("bert.embeddings.position_ids", "bert.pooler.*", "cls.*", "bert.cls.*", "classifier.*"),
    spellings=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),  # of 2018
    ignored_gguf=("cls.*",),
)
