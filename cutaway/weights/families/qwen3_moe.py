"""Qwen 3 MoE (2505.09388): Qwen 3's block with many small experts and none that is shared."""

from cutaway.weights import naming, rows
from cutaway.weights.families import qwen2_moe, qwen3
from cutaway.weights.family import Only, shared

FAMILY = qwen3.FAMILY.but(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    hf=(*qwen3.FAMILY.hf, *naming.HF_EXPERTS),
    gguf=(*qwen3.FAMILY.gguf, *naming.GGUF_EXPERTS),
    rows=(
        *rows.SIZES,
        *qwen2_moe.ROWS,
        *rows.biases("attention_bias"),
        Only(None, "expert_weights_norm", (True,), "weighing experts otherwise"),
        Only(None, "expert_shared_feed_forward_length", (0,), "an expert that all tokens pass"),
    ),
    defaults={"kv_heads": 4, "head_size": shared}
    | {"experts": 128, "top_k": 8, "expert_hidden": 768, "normalised": False},
    forget=("kv_heads",),
    gguf_fixed={"normalised": True},
    sparse=True,
)
