"""GLM-4-0414 (2025): norms before and after each half, half of each head rotated in neighbouring pairs."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import Present

FAMILY = llama.FAMILY.but(
    "glm4",
    "Glm4ForCausalLM",
    hf=(
        *naming.HF_GATE_UP,
        *naming.pairs(
            ("model.layers.{n}.post_self_attn_layernorm", "blocks.{n}.attention_post_norm"),
            ("model.layers.{n}.post_mlp_layernorm", "blocks.{n}.mlp_post_norm"),
        ),
    ),
    gguf=(*naming.GGUF_GATE_UP, *naming.GGUF_SANDWICH),
    rows=(
        *rows.turning(rows.SIZES, part=0.5, interleaved=True),
        *rows.DENSE,
        Present("bias", "attention_bias", "blk.0.attn_q.bias"),
    ),
    defaults={"kv_heads": 2, "head_size": 128, "context": 131072, "eps": 1.5625e-7, "bias": True},
    forget=("kv_heads",),
    fixed={"post_norm": True, "out_bias": False},
    ignored_gguf=(),
)
