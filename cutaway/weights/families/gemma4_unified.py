"""Gemma 4's 12B (2026), text: Gemma 4 without per-layer embeddings and experts, as a type of its own."""

from cutaway.weights import rows
from cutaway.weights.families import gemma4
from cutaway.weights.family import Field, Only

ALIASES = ("gemma4_unified_text",)

FAMILY = gemma4.FAMILY.but(
    "gemma4_unified",
    "Gemma4UnifiedForCausalLM",
    hf_type="gemma4_unified_text",
    architecture="gemma4",
    rows=(
        *rows.replaced(gemma4.FAMILY.rows, without=("experts", "per_layer", "per_layer_vocab")),
        Field("per_layer", None, "embedding_length_per_layer_input", gemma4.ANY, missing=0),
        Only("enable_moe_block", None, (False, None), "experts beside the MLP"),
        Only("hidden_size_per_layer_input", None, (0, None), "an embedding for each layer"),
    ),
    defaults={"context": 262_144, "window": 1024},
    fixed={"per_layer": 0, "experts": None},
    sparse=False,
)
