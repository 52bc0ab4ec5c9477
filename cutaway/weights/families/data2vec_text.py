"""data2vec of texts (2202.03555): RoBERTa."""

from cutaway.weights import naming
from cutaway.weights.families import bert, roberta

ALIASES = ("data2vec-text",)

FAMILY = roberta.FAMILY.but(
    "data2vec_text",
    "Data2VecTextModel",
    hf_type="data2vec-text",
    hf=naming.renamed(bert.HF, ("bert.", "data2vec_text.")),
    defaults={"vocab": 30522},
    prefix="data2vec_text.",
    ignored_hf=(
        "data2vec_text.embeddings.position_ids",
        *("data2vec_text.pooler.*", "lm_head.*", "classifier.*"),
    ),
)
