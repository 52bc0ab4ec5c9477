"""OLMoE (2409.02060): llama's block with norms over all queries and all keys, and many small experts."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import FLAG, Field, Only, shared

FAMILY = llama.FAMILY.but(
    "olmoe",
    "OlmoeForCausalLM",
    hf=(*naming.HF_DECODER, *naming.HF_QK_NORM, *naming.HF_EXPERTS),
    gguf=(*naming.GGUF_PLAIN, *naming.GGUF_QK_NORM, *naming.GGUF_EXPERTS),
    rows=(
        *rows.SIZES,
        *rows.experts("num_experts", ("intermediate_size", "feed_forward_length"), "num_local_experts"),
        Field("normalised", "norm_topk_prob", None, FLAG),
        *rows.biases("attention_bias"),
        Only("clip_qkv", None, (None,), "clipping of what is normed already"),
        Only(None, "expert_weights_norm", (False,), "weighing experts otherwise"),
    ),
    defaults={"context": 4096, "eps": 1e-5, "experts": 64, "top_k": 8, "normalised": False},
    fixed={"qk_norm": True, "qk_norm_over": "width"},
    gguf_fixed={"normalised": False, "tied": False, "kv_heads": rows.same_heads, "head_size": shared},
    sparse=True,
    ignored_gguf=(),
)
