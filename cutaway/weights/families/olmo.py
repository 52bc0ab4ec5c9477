"""OLMo (2402.00838): llama's block with layer norms that learn nothing, and clipped queries, keys, values."""

from cutaway.weights import rows
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Field

FAMILY = llama.FAMILY.but(
    "olmo",
    "OlmoForCausalLM",
    gguf=tuple(rule for rule in llama.GGUF if not rule.theirs.endswith("bias")),
    rows=(
        *rows.replaced(rows.SIZES, without=("eps",)),
        *rows.DENSE,
        *rows.biases("attention_bias"),
        Field("eps", None, "attention.layer_norm_epsilon", NUMBER),
        Field("clip", "clip_qkv", "attention.clamp_kqv", NUMBER, missing=None),
    ),
    defaults={"clip": None},
    nulls={"clip": None},
    fixed={"norm": "layer", "norm_weight": False, "eps": 1e-5},
    gguf_fixed={"eps": 1e-5},
    ignored_gguf=(),
)
