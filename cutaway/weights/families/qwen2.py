"""Qwen 2 and 2.5 (2407.10671): llama's block, biases on query, key and value, windows in upper layers."""

from cutaway.weights import common
from cutaway.weights.families import llama
from cutaway.weights.family import shared

FAMILY = llama.FAMILY.but(
    "qwen2",
    "Qwen2ForCausalLM",
    gguf=(
        *common.GGUF_EMBEDDINGS,
        *common.GGUF_NORMS,
        *common.pairs(*common.GGUF_QUERY_KEY, common.GGUF_VALUE),
        *common.weights(common.GGUF_OUT, *common.GGUF_MLP),
    ),
    rows=(*common.SIZES, *common.DENSE, common.UpperWindows()),
    defaults={"kv_heads": 32, "context": 32768},
    forget=("head_size",),
    fixed={"bias": True, "out_bias": False},
    gguf_fixed={"head_size": shared},  # whatever the file says
    ignored_gguf=(),
)
