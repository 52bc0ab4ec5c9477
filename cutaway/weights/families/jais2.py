"""Jais 2 (2025): layer norms, biases everywhere, an MLP without a gate, down(relu(up x)^2)."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Field

FAMILY = llama.FAMILY.but(
    "jais2",
    "Jais2ForCausalLM",
    gguf=naming.GGUF_BIASED,
    rows=(
        *rows.replaced(rows.SIZES, Field("eps", "layer_norm_eps", "attention.layer_norm_epsilon", NUMBER)),
        *llama.FAMILY.rows[len(rows.SIZES) :],
    ),
    defaults={"context": 8192, "eps": 1e-5, "activation": "relu2", "bias": True, "out_bias": True}
    | {"mlp_bias": True},
    fixed={"norm": "layer", "gated": False},
    gguf_fixed={"activation": "relu2", "bias": True, "out_bias": True, "mlp_bias": True},
    ignored_gguf=(),
)
