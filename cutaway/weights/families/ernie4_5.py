"""ERNIE 4.5 (2025): llama's block, rotated in neighbouring pairs."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import Present

ALIASES = ("ernie4_5",)

FAMILY = llama.FAMILY.but(
    "ernie4_5",
    "Ernie4_5ForCausalLM",
    gguf=naming.GGUF_PLAIN,
    rows=(
        *rows.turning(rows.SIZES, interleaved=True),
        *rows.DENSE,
        *rows.biases("use_bias"),
        Present("mlp_bias", "use_bias", "blk.0.ffn_up.bias"),
    ),
    defaults={
        "kv_heads": 2,
        "head_size": 128,
        "context": 131072,
        "eps": 1e-5,
        "tied": True,
        "rope_base": 5e5,
    },
    ignored_gguf=(),
    architecture="ernie4_5",
)
