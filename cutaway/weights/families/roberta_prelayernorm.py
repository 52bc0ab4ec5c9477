"""RoBERTa with norms before each half of a block, and one at the end (fairseq, 1904.01038)."""

from cutaway.weights import naming
from cutaway.weights.families import bert, roberta

ALIASES = ("roberta-prelayernorm",)
PREFIX = "roberta_prelayernorm."

FAMILY = roberta.FAMILY.but(
    "roberta_prelayernorm",
    "RobertaPreLayerNormModel",
    hf_type="roberta-prelayernorm",
    hf=(
        *naming.renamed(
            bert.HF,
            ("bert.", PREFIX),
            ("attention.output.LayerNorm", "attention.LayerNorm"),
            ("{n}.output.LayerNorm", "{n}.intermediate.LayerNorm"),
        ),
        *naming.pairs((f"{PREFIX}LayerNorm", "last_norm")),
    ),
    fixed={"norm_first": True},
    prefix=PREFIX,
    ignored_hf=(f"{PREFIX}embeddings.position_ids", f"{PREFIX}pooler.*", "lm_head.*", "classifier.*"),
)
