"""Qwen 3 (2505.09388): llama's block with a norm on each head's query and key before RoPE."""

from cutaway.weights import common
from cutaway.weights.families import qwen2

FAMILY = qwen2.FAMILY.but(
    "qwen3",
    "Qwen3ForCausalLM",
    hf=(*common.HF_DECODER, *common.HF_QK_NORM),
    gguf=(*common.GGUF_PLAIN, *common.GGUF_QK_NORM),
    rows=(*common.SIZES, *common.DENSE, *common.biases("attention_bias"), common.UpperWindows()),
    defaults={"head_size": 128},
    forget=("bias", "out_bias", "head_size"),
    fixed={"qk_norm": True},
)
