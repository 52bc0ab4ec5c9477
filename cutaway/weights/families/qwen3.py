"""Qwen 3 (2505.09388): llama's block with a norm on each head's query and key before RoPE."""

from cutaway.weights import naming, rows
from cutaway.weights.families import qwen2

FAMILY = qwen2.FAMILY.but(
    "qwen3",
    "Qwen3ForCausalLM",
    hf=(*naming.HF_DECODER, *naming.HF_QK_NORM),
    gguf=(*naming.GGUF_PLAIN, *naming.GGUF_QK_NORM),
    rows=(*rows.SIZES, *rows.DENSE, *rows.biases("attention_bias"), rows.UpperWindows()),
    defaults={"head_size": 128},
    forget=("bias", "out_bias", "head_size"),
    fixed={"qk_norm": True},
)
