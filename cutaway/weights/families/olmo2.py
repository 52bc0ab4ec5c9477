"""OLMo 2 (2501.00656): norms after each half and none before, and one on all queries and on all keys."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama

FAMILY = llama.FAMILY.but(
    "olmo2",
    "Olmo2ForCausalLM",
    hf=(*naming.HF_SANDWICH, *naming.HF_QK_NORM),
    gguf=(*naming.GGUF_PLAIN, *naming.GGUF_SANDWICH, *naming.GGUF_QK_NORM),
    rows=(*rows.SIZES, *rows.DENSE, *rows.biases("attention_bias")),
    defaults={"eps": 1e-5},
    fixed={"qk_norm": True, "qk_norm_over": "width", "pre_norm": False, "post_norm": True},
    gguf_fixed={"tied": False},
    ignored_gguf=(),
    instead=lambda fields: "olmo3" if fields.has("olmo2.attention.sliding_window") else None,
)
