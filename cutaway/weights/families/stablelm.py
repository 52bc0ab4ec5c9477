"""StableLM (2402.17834): llama's block with layer norms and a quarter of each head rotated."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import FLAG, NUMBER, Field, Only, Present

FAMILY = llama.FAMILY.but(
    "stablelm",
    "StableLmForCausalLM",
    gguf=naming.GGUF_BIASED,
    rows=(
        *rows.replaced(
            rows.turning(rows.SIZES, part=0.25),
            Field("eps", "layer_norm_eps", "attention.layer_norm_epsilon", NUMBER),
        ),
        *rows.DENSE,
        Present("bias", "use_qkv_bias", "blk.0.attn_q.bias"),
        Field("side_by_side", "use_parallel_residual", "use_parallel_residual", FLAG, missing=False),
        Only("qk_layernorm", None, (False,), "a layer norm for each head's query and key"),
    ),
    defaults={"kv_heads": 32, "context": 4096, "eps": 1e-5, "side_by_side": False},
    forget=("kv_heads",),
    fixed={"norm": "layer", "out_bias": False}
    | {"parallel": lambda known: "shared" if known["side_by_side"] else None},
    gguf_fixed={"tied": False},
    ignored_gguf=(),
)
