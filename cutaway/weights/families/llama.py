"""Llama (2302.13971, 2307.09288, 2407.21783) and models of its shape, such as SmolLM."""

from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.family import Family, Present, shared
from cutaway.weights.naming import GGUF_MLP, GGUF_OUT, GGUF_QUERY_KEY, GGUF_VALUE
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import unpermute

ALIASES = ("smollm",)

GGUF_ATTENTION = (
    *naming.pairs(GGUF_VALUE, GGUF_OUT),
    *(
        Rule(f"{theirs}.{part}", f"{ours}.{part}", unpermute(which))
        for (theirs, ours), which in zip(GGUF_QUERY_KEY, ("heads", "groups"), strict=True)
        for part in ("weight", "bias")
    ),
)
GGUF = (
    *naming.GGUF_EMBEDDINGS,
    *naming.GGUF_NORMS,
    *naming.pairs(*GGUF_MLP),
    *GGUF_ATTENTION,
)
FAMILY = Family(
    "llama",
    "LlamaForCausalLM",
    hf=naming.HF_DECODER,
    gguf=GGUF,
    rows=(
        *rows.SIZES,
        *rows.DENSE,
        *rows.biases("attention_bias"),
        Present("mlp_bias", "mlp_bias", "blk.0.ffn_up.bias"),
    ),
    build=decoders.decoder,
    describe=decoders.settings,
    defaults={"kv_heads": rows.same_heads, "head_size": shared, "context": 2048, "rope_base": 10000.0}
    | {"eps": 1e-6, "activation": "silu", "tied": False, "bias": False, "out_bias": False, "mlp_bias": False},
    nulls={"kv_heads": rows.same_heads, "head_size": shared},
    fixed={"norm": "rms"},
    gguf_fixed={"activation": "silu"},
    ignored_gguf=(rotary.ROPE_FREQS,),
)
