"""XLM-RoBERTa XL and XXL (2105.00572): RoBERTa whose norms come first, with one at the end."""

from cutaway.weights import naming, rows
from cutaway.weights.families import bert, roberta

ALIASES = ("xlm-roberta-xl",)

FAMILY = roberta.FAMILY.but(
    "xlm_roberta_xl",
    "XLMRobertaXLModel",
    hf_type="xlm-roberta-xl",
    hf=(
        *naming.renamed(
            bert.HF,
            ("bert.", "roberta."),
            ("attention.output.LayerNorm", "attention.self_attn_layer_norm"),
            ("{n}.output.LayerNorm", "{n}.LayerNorm"),
            without=("embeddings.LayerNorm",),
        ),
        *naming.pairs(("roberta.encoder.LayerNorm", "last_norm")),
    ),
    rows=rows.replaced(bert.FAMILY.rows, roberta.Context(514)),
    defaults={"vocab": 250880, "width": 2560, "layers": 36, "heads": 32, "hidden": 10240}
    | {"segments": 1, "eps": 1e-5},
    fixed={"norm_first": True, "embedding_norm": False},
)
