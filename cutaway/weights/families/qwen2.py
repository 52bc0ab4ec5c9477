"""Qwen 2 and 2.5 (2407.10671): llama's block, biases on query, key and value, windows in upper layers."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import shared

FAMILY = llama.FAMILY.but(
    "qwen2",
    "Qwen2ForCausalLM",
    gguf=(
        *naming.GGUF_EMBEDDINGS,
        *naming.GGUF_NORMS,
        *naming.pairs(*naming.GGUF_QUERY_KEY, naming.GGUF_VALUE),
        *naming.weights(naming.GGUF_OUT, *naming.GGUF_MLP),
    ),
    rows=(*rows.SIZES, *rows.DENSE, rows.UpperWindows()),
    defaults={"kv_heads": 32, "context": 32768},
    forget=("head_size",),
    fixed={"bias": True, "out_bias": False},
    gguf_fixed={"head_size": shared},  # whatever the file says
    ignored_gguf=(),
)
