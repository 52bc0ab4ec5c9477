"""Helium 1 (Kyutai, 2025): llama's block, rotated in neighbouring pairs."""

from cutaway.weights import rows
from cutaway.weights.families import llama
from cutaway.weights.family import Present

FAMILY = llama.FAMILY.but(
    "helium",
    "HeliumForCausalLM",
    gguf=(),
    rows=(
        *rows.turning(rows.SIZES, interleaved=True),
        *rows.DENSE,
        Present("bias", "attention_bias", "blk.0.attn_q.bias"),
        Present("mlp_bias", "mlp_bias", "blk.0.ffn_up.bias"),
    ),
    defaults={"kv_heads": 20, "head_size": 128, "context": 4096, "eps": 1e-8, "rope_base": 1e5},
    forget=("kv_heads",),
    fixed={"out_bias": False},
)
