"""Granite 3 (2024): llama's block with multipliers of embeddings, residual additions, scores and logits."""

from cutaway.weights import rows
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Field

MULTIPLIERS = (
    Field("embedding_scale", "embedding_multiplier", "embedding_scale", NUMBER, missing=1.0),
    Field("residual", "residual_multiplier", "residual_scale", NUMBER, missing=1.0),
    Field("scale", "attention_multiplier", "attention.scale", NUMBER, missing=None),
    Field("logit_scale", "logits_scaling", "logit_scale", rows.INVERSE),
)

FAMILY = llama.FAMILY.but(
    "granite",
    "GraniteForCausalLM",
    rows=(*llama.FAMILY.rows, *MULTIPLIERS),
    defaults={"embedding_scale": 1.0, "residual": 1.0, "scale": 1.0, "logit_scale": 1.0},
)
