"""AFM (Arcee, 2025): llama's block with an MLP that is not gated, down(relu(up x)^2)."""

from cutaway.weights.families import llama

FAMILY = llama.FAMILY.but(
    "arcee",
    "ArceeForCausalLM",
    gguf=tuple(rule for rule in llama.GGUF if not rule.theirs.endswith("bias")),
    defaults={"context": 4096, "eps": 1e-5, "activation": "relu2"},
    fixed={"gated": False},
    gguf_fixed={"activation": "relu2"},
)
