"""GLM-4 of 2024 (2406.12793): llama's block, half of each head rotated in neighbouring pairs."""

from cutaway.weights import naming
from cutaway.weights.families import glm4
from cutaway.weights.family import shared

ALIASES = ("chatglm",)

FAMILY = glm4.FAMILY.but(
    "glm",
    "GlmForCausalLM",
    hf=naming.HF_GATE_UP,
    gguf=naming.GGUF_GATE_UP,
    forget=("post_norm",),
    gguf_fixed={"head_size": shared, "tied": False},
    architecture="chatglm",
)
