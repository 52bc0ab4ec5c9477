"""StarCoder 2 (2402.19173): layer norms, biases, an MLP without a gate, and a sliding window."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Field, Present

FAMILY = llama.FAMILY.but(
    "starcoder2",
    "Starcoder2ForCausalLM",
    hf=naming.renamed(naming.HF_DECODER, ("up_proj", "c_fc"), ("down_proj", "c_proj")),
    gguf=naming.GGUF_BIASED,
    rows=(
        *rows.replaced(rows.SIZES, Field("eps", "norm_epsilon", "attention.layer_norm_epsilon", NUMBER)),
        *rows.DENSE,
        *rows.biases("use_bias"),
        Present("mlp_bias", "use_bias", "blk.0.ffn_up.bias"),
        Field("window", "sliding_window", None),
    ),
    defaults={"kv_heads": 2, "context": 4096, "eps": 1e-5, "activation": "gelu_tanh", "tied": True}
    | {"bias": True, "out_bias": True, "mlp_bias": True, "window": None},
    nulls={"window": None},
    forget=("kv_heads",),
    fixed={"norm": "layer", "gated": False},
    harmless=("residual_dropout", "embedding_dropout"),
    gguf_fixed={"activation": "gelu_tanh", "bias": True, "out_bias": True, "mlp_bias": True},
    ignored_gguf=(),
)
