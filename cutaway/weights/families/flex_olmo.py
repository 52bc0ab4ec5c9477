"""FlexOlmo (2507.07024): OLMo 2's block with a mixture of experts that were trained apart."""

from cutaway.weights import naming, rows
from cutaway.weights.families import olmo2
from cutaway.weights.family import FLAG, Field

FAMILY = olmo2.FAMILY.but(
    "flex_olmo",
    "FlexOlmoForCausalLM",
    hf=(*olmo2.FAMILY.hf, *naming.HF_EXPERTS),
    gguf=(),
    rows=(
        *rows.SIZES,
        *rows.experts("num_experts", ("intermediate_size", "feed_forward_length"), "num_local_experts"),
        Field("normalised", "norm_topk_prob", None, FLAG),
        *rows.biases("attention_bias"),
    ),
    defaults={"context": 4096, "eps": 1e-6, "rope_base": 5e5}
    | {"experts": 7, "top_k": 5, "normalised": False},
    sparse=True,
    instead=None,
)
