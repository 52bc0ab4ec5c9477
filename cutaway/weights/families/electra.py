"""ELECTRA (2003.10555): BERT whose embeddings may be narrower than the model.

The head of its pretraining, which says of each token whether it was replaced, is not read.
"""

from cutaway.weights import naming
from cutaway.weights.families import bert, roberta

FAMILY = bert.FAMILY.but(
    "electra",
    "ElectraModel",
    hf=(
        *naming.renamed(bert.HF, ("bert.", "electra.")),
        *naming.pairs(("electra.embeddings_project", "projection")),
    ),
    gguf=(),
    rows=(*bert.FAMILY.rows, bert.EmbeddingWidth("embedding_size", 128)),
    defaults={"width": 256, "hidden": 1024, "heads": 4},
    head=roberta.HEAD._replace(activation="gelu"),
    prefix="electra.",
    ignored_hf=(
        "electra.embeddings.position_ids",
        *("discriminator_predictions.*", "generator_predictions.*", "generator_lm_head.*", "classifier.*"),
    ),
)
