"""RoFormer (2104.09864), the first with rotary positions: BERT whose queries and keys rotate in neighbouring
pairs.
"""

from cutaway.position import rope
from cutaway.weights import naming
from cutaway.weights.families import bert, roberta
from cutaway.weights.family import Only, Settings, shared


def rotary(known: Settings) -> rope.Config:
    """The positions of all its models."""
    return rope.Config(shared(known), 10000.0, interleaved=True)


FAMILY = bert.FAMILY.but(
    "roformer",
    "RoFormerModel",
    hf=(
        *naming.renamed(bert.HF, ("bert.", "roformer."), without=("position_embeddings",)),
        *naming.pairs(("roformer.embeddings_project", "projection")),
    ),
    gguf=(),
    rows=(
        *bert.FAMILY.rows,
        bert.EmbeddingWidth("embedding_size", None),
        Only("rotary_value", None, (False,), "values that rotate"),
    ),
    defaults={"vocab": 50000, "context": 1536},
    fixed={"learned": False, "rope": rotary},
    head=roberta.HEAD._replace(activation=("hidden_act", "gelu")),
    prefix="roformer.",
    sines={"roformer.encoder.embed_positions.weight": 10000.0},
    ignored_hf=(
        *("roformer.embeddings.position_ids", "roformer.encoder.embed_positions.weight"),
        *("roformer.pooler.*", "cls.*", "classifier.*"),
    ),
)
