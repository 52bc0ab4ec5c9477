"""Seed-OSS (2025): llama's block with biases on query, key and value, and heads apart from the width."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama, qwen2
from cutaway.weights.family import Present

ALIASES = ("seed_oss",)

FAMILY = llama.FAMILY.but(
    "seed_oss",
    "SeedOssForCausalLM",
    gguf=naming.renamed(qwen2.FAMILY.gguf, ("ffn_norm", "post_attention_norm")),
    rows=(
        *rows.SIZES,
        *rows.DENSE,
        Present("bias", "attention_bias", "blk.0.attn_q.bias"),
        Present("out_bias", "attention_out_bias", "blk.0.attn_output.bias"),
        Present("mlp_bias", "mlp_bias", "blk.0.ffn_up.bias"),
    ),
    defaults={"kv_heads": 8, "head_size": 128, "context": 524288, "bias": True},
    harmless=("residual_dropout",),
    architecture="seed_oss",
    ignored_gguf=(),
)
