"""EXAONE 3 and 3.5, EXAONE Deep (2408.03541, 2412.04862): llama's block under other names."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import LAYER_COUNT, NUMBER, Field

NAMES = (  # llama's, which transformers takes too, and its own
    ("model.embed_tokens", "transformer.wte"),
    ("model.norm", "transformer.ln_f"),
    ("model.layers", "transformer.h"),
    ("self_attn.o_proj", "self_attn.out_proj"),
    ("self_attn", "attn.attention"),
    ("gate_proj", "c_fc_0"),
    ("up_proj", "c_fc_1"),
    ("down_proj", "c_proj"),
    ("input_layernorm", "ln_1"),
    ("post_attention_layernorm", "ln_2"),
)

FAMILY = llama.FAMILY.but(
    "exaone",
    "ExaoneForCausalLM",
    hf=naming.renamed(naming.HF_DECODER, *NAMES),
    spellings=NAMES,
    modules=tuple((own, theirs) for theirs, own in reversed(NAMES)),
    gguf=naming.GGUF_PLAIN,
    rows=(
        *rows.replaced(
            rows.SIZES,
            Field("layers", "num_layers", "block_count", LAYER_COUNT, alias="num_hidden_layers"),
            Field(
                "eps", "layer_norm_epsilon", "attention.layer_norm_rms_epsilon", NUMBER, alias="rms_norm_eps"
            ),
            Field("activation", "activation_function", None, rows.ACTIVATION, alias="hidden_act"),
        ),
        *llama.FAMILY.rows[len(rows.SIZES) :],
    ),
    defaults={"kv_heads": 8, "context": 4096, "eps": 1e-5, "rope_base": 5e5},
    prefix="transformer.",
    ignored_hf=("transformer.h.*.attn.attention.rotary.inv_freq", "transformer.rotary.inv_freq"),
)
