"""DistilBERT (1910.01108): BERT with half of its layers and without segments."""

from cutaway.weights import naming, rows
from cutaway.weights.classifier_head import Head
from cutaway.weights.families import bert
from cutaway.weights.family import LAYER_COUNT, Field
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

LAYER = "distilbert.transformer.layer.{n}"

FAMILY = bert.FAMILY.but(
    "distilbert",
    "DistilBertModel",
    hf=(
        Rule("distilbert.embeddings.word_embeddings.weight", "embedding.weight", same),
        Rule("distilbert.embeddings.position_embeddings.weight", "position.weight", same),
        *naming.pairs(
            ("distilbert.embeddings.LayerNorm", "norm"),
            (f"{LAYER}.attention.q_lin", "blocks.{n}.attention.query"),
            (f"{LAYER}.attention.k_lin", "blocks.{n}.attention.key"),
            (f"{LAYER}.attention.v_lin", "blocks.{n}.attention.value"),
            (f"{LAYER}.attention.out_lin", "blocks.{n}.attention.out"),
            (f"{LAYER}.sa_layer_norm", "blocks.{n}.attention_norm"),
            (f"{LAYER}.ffn.lin1", "blocks.{n}.mlp.up"),
            (f"{LAYER}.ffn.lin2", "blocks.{n}.mlp.down"),
            (f"{LAYER}.output_layer_norm", "blocks.{n}.mlp_norm"),
        ),
    ),
    gguf=(),
    rows=(
        Field("layers", "n_layers", None, LAYER_COUNT),
        rows.Vocab("vocab", "vocab_size", None),
        Field("width", "dim", None),
        Field("context", "max_position_embeddings", None),
        Field("heads", "n_heads", None),
        Field("hidden", "hidden_dim", None),
        Field("activation", "activation", None, rows.ACTIVATION),
        *rows.ANY,
    ),
    defaults={"layers": 6},
    fixed={"segments": 0, "eps": 1e-12},
    head=Head("pre_classifier", "relu"),
    prefix="distilbert.",
    harmless=(
        *("dropout", "qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds", "tie_weights_"),
        *("tie_word_embeddings", "output_past"),
    ),
    ignored_hf=(
        "distilbert.embeddings.position_ids",
        *("vocab_transform.*", "vocab_layer_norm.*", "vocab_projector.*", "pre_classifier.*", "classifier.*"),
    ),
)
