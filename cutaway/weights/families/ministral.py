"""Ministral 8B (2024): Mistral's block; a list says which layers are local. In GGUF it is a llama."""

from cutaway.weights import rows
from cutaway.weights.families import mistral

FAMILY = mistral.FAMILY.but(
    "ministral",
    "MinistralForCausalLM",
    rows=(
        *rows.SIZES,
        *rows.DENSE,
        rows.LayerTypes(1, key=None, usual=lambda layers: [True] * layers, in_gguf=False),
    ),
    forget=("window",),
    architecture="llama",
)
