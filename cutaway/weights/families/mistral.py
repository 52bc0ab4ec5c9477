"""Mistral (2310.06825): llama's block with a sliding window. In GGUF it is a llama, which has no window."""

from cutaway.weights import rows
from cutaway.weights.families import llama
from cutaway.weights.family import Field

FAMILY = llama.FAMILY.but(
    "mistral",
    "MistralForCausalLM",
    architecture="llama",
    rows=(*rows.SIZES, *rows.DENSE, Field("window", "sliding_window", None)),
    defaults={"kv_heads": 8, "context": 131072, "window": 4096},
    nulls={"window": None},
    fixed={"bias": False, "out_bias": False},
    forget=("kv_heads",),
)
