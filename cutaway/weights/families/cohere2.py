"""Command A and R7B (2025): Command R with three local layers to one global, which has no positions."""

from cutaway.weights import naming, rows
from cutaway.weights.families import cohere

FAMILY = cohere.FAMILY.but(
    "cohere2",
    "Cohere2ForCausalLM",
    hf=naming.HF_DECODER,
    rows=(
        *rows.replaced(rows.turning(rows.SIZES, interleaved=True), cohere.EPS),
        *rows.DENSE,
        *rows.biases("attention_bias"),
        cohere.LOGIT_SCALE,
        rows.LayerTypes(pattern=4),
    ),
    defaults={"rope_base": 1e4},
    forget=("qk_norm_over", "qk_norm"),
    architecture="cohere2",
    fixed={"nope": rows.nope_where_full},
)
