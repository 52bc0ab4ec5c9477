"""Command R (2024): attention and MLP side by side behind one layer norm without bias, and scaled logits."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import FLAG, NUMBER, Field, Settings

EPS = Field("eps", "layer_norm_eps", "attention.layer_norm_epsilon", NUMBER)
LOGIT_SCALE = Field("logit_scale", "logit_scale", "logit_scale", NUMBER)

ALIASES = ("command-r",)


def qk_norm_over(known: Settings) -> str:
    """Each head has weights of its own."""
    return "each" if known["qk_norm"] else "head"


FAMILY = llama.FAMILY.but(
    "cohere",
    "CohereForCausalLM",
    hf=(*naming.HF_DECODER, *naming.HF_QK_NORM),
    gguf=naming.GGUF_PLAIN,
    rows=(
        *rows.replaced(rows.turning(rows.SIZES, interleaved=True), EPS),
        *rows.DENSE,
        *rows.biases("attention_bias"),
        LOGIT_SCALE,
        Field("qk_norm", "use_qk_norm", None, FLAG),
    ),
    defaults={"context": 8192, "eps": 1e-5, "tied": True, "logit_scale": 0.0625, "rope_base": 5e5}
    | {"qk_norm": False},
    fixed={"norm": "layer", "norm_bias": False, "parallel": "shared", "qk_norm_over": qk_norm_over},
    architecture="command-r",
    gguf_fixed={"qk_norm": False, "tied": True},
    ignored_gguf=(),
)
