"""ALBERT (1909.11942): BERT with narrow embeddings, whose layers share the weights of a few blocks."""

from cutaway.model.config import Encoder
from cutaway.weights import decoders, naming, rows
from cutaway.weights.classifier_head import Head
from cutaway.weights.families import bert
from cutaway.weights.family import LAYER_COUNT, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields

LAYER, OURS = "albert.encoder.albert_layer_groups.{n}.albert_layers.0", "blocks.{n}"


class Groups(Row):
    """How many blocks there are, and which of them each layer is."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers, key = known["layers"], "num_hidden_groups"
        groups = fields.integer(key, high=layers) if fields.stated(key) else 1
        order = tuple(int(n / (layers / groups)) for n in range(layers))  # as transformers rounds it
        return {"distinct": groups, "order": () if order == tuple(range(groups)) else order}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf else {"num_hidden_groups": known["distinct"]}


def settings(config: Encoder) -> Settings:
    """The settings of a config."""
    return decoders.settings(config) | {"layers": len(config.layers), "distinct": len(config.blocks)}


FAMILY = bert.FAMILY.but(
    "albert",
    "AlbertModel",
    hf=(
        *naming.renamed(bert.HF[:3], ("bert.", "albert.")),
        *naming.pairs(
            ("albert.embeddings.LayerNorm", "norm"),
            ("albert.encoder.embedding_hidden_mapping_in", "projection"),
            (f"{LAYER}.attention.query", f"{OURS}.attention.query"),
            (f"{LAYER}.attention.key", f"{OURS}.attention.key"),
            (f"{LAYER}.attention.value", f"{OURS}.attention.value"),
            (f"{LAYER}.attention.dense", f"{OURS}.attention.out"),
            (f"{LAYER}.attention.LayerNorm", f"{OURS}.attention_norm"),
            (f"{LAYER}.ffn", f"{OURS}.mlp.up"),
            (f"{LAYER}.ffn_output", f"{OURS}.mlp.down"),
            (f"{LAYER}.full_layer_layer_norm", f"{OURS}.mlp_norm"),
        ),
    ),
    gguf=(),
    rows=(
        *rows.replaced(bert.FAMILY.rows, without=("layers",)),
        Field("layers", "num_hidden_layers", None, LAYER_COUNT),
        Groups(),
        bert.EmbeddingWidth("embedding_size", 128, always=True),
        Only("inner_group_num", None, (1,), "a group of several layers"),
    ),
    describe=settings,
    defaults={"vocab": 30000, "width": 4096, "hidden": 16384, "heads": 64, "activation": "gelu_tanh"},
    head=Head("pooler"),
    prefix="albert.",
    harmless=(
        *bert.FAMILY.harmless,
        *("classifier_dropout_prob", "down_scale_factor", "gap_size", "net_structure_type"),
        *("num_memory_blocks", "layers_to_keep"),
    ),
    ignored_hf=(
        *("albert.embeddings.position_ids", "albert.pooler.*", "predictions.*", "sop_classifier.*"),
        "classifier.*",
    ),
)
