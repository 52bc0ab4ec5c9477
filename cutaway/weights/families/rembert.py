"""RemBERT (2010.12821): BERT with embeddings of a width of their own."""

from cutaway.weights import naming
from cutaway.weights.families import bert

FAMILY = bert.FAMILY.but(
    "rembert",
    "RemBertModel",
    hf=(
        *naming.renamed(bert.HF, ("bert.", "rembert.")),
        *naming.pairs(("rembert.encoder.embedding_hidden_mapping_in", "projection")),
    ),
    gguf=(),
    rows=(*bert.FAMILY.rows, bert.EmbeddingWidth("input_embedding_size", 256, always=True)),
    defaults={"vocab": 250300, "width": 1152, "hidden": 4608, "layers": 32, "heads": 18},
    prefix="rembert.",
    harmless=(*bert.FAMILY.harmless, "classifier_dropout_prob", "output_embedding_size"),
    ignored_hf=("rembert.embeddings.position_ids", "rembert.pooler.*", "cls.*", "classifier.*"),
)
