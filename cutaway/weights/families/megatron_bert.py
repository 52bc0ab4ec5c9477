"""Megatron's BERT (1909.08053): norms before each half of a block, one at the end, none before."""

from cutaway.weights import naming
from cutaway.weights.families import bert

ALIASES = ("megatron-bert",)

FAMILY = bert.FAMILY.but(
    "megatron_bert",
    "MegatronBertModel",
    hf_type="megatron-bert",
    hf=(
        *naming.renamed(
            bert.HF,
            ("attention.output.LayerNorm", "attention.ln"),
            ("{n}.output.LayerNorm", "{n}.ln"),
            without=("embeddings.LayerNorm",),
        ),
        *naming.pairs(("bert.encoder.ln", "last_norm")),
    ),
    gguf=(),
    defaults={"vocab": 29056, "width": 1024, "hidden": 4096, "layers": 24, "heads": 16},
    fixed={"norm_first": True, "embedding_norm": False},
)
