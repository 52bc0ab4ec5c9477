"""SqueezeBERT (2006.11316): BERT whose matrices are convolutions of a quarter of the vector each.

Here they are whole matrices, which have zeros where a quarter does not see another.
"""

from cutaway.weights import naming, rows
from cutaway.weights.families import bert
from cutaway.weights.family import Entries, Family, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import grouped, same

LAYER, OURS = "transformer.encoder.layers.{n}", "blocks.{n}"
GROUPS = 4  # of all published models
MATRICES = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "intermediate.conv1d": "mlp.up",
    "output.conv1d": "mlp.down",
}


class EmbeddingSize(Row):
    """The width of embeddings, which is the model's."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        fields.only("embedding_size", (known["width"],), "embeddings of another width")
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf else {"embedding_size": known["width"]}


FAMILY = bert.FAMILY.but(
    "squeezebert",
    "SqueezeBertModel",
    hf=(
        *naming.renamed(bert.HF[:5], ("bert.", "transformer.")),
        *naming.pairs(
            (f"{LAYER}.post_attention.layernorm", f"{OURS}.attention_norm"),
            (f"{LAYER}.output.layernorm", f"{OURS}.mlp_norm"),
        ),
        Rule(f"{LAYER}.post_attention.conv1d.weight", f"{OURS}.attention.out.weight", grouped(1)),
        Rule(f"{LAYER}.post_attention.conv1d.bias", f"{OURS}.attention.out.bias", same),
        *(
            Rule(f"{LAYER}.{theirs}.{part}", f"{OURS}.{ours}.{part}", how)
            for theirs, ours in MATRICES.items()
            for part, how in (("weight", grouped(GROUPS)), ("bias", same))
        ),
    ),
    gguf=(),
    rows=(
        *rows.replaced(bert.FAMILY.rows, without=("eps",)),
        Only("layer_norm_eps", None, (1e-12,), "another number in the norms of blocks, which is fixed,"),
        EmbeddingSize(),
        Only("post_attention_groups", None, (1,), "groups in the attention's output"),
        *(
            Only(f"{name}_groups", None, (GROUPS,), "another number of groups")
            for name in ("q", "k", "v", "intermediate", "output")
        ),
    ),
    fixed={"eps": 1e-12},
    prefix="transformer.",
    ignored_hf=("transformer.embeddings.position_ids", "transformer.pooler.*", "cls.*", "classifier.*"),
)
