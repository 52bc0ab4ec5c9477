"""Gemma 2 (2408.00118): Gemma with norms before and after each half, bounded scores and logits.

Every other layer is local.
"""

from functools import partial

from cutaway.weights import naming, rows
from cutaway.weights.families import gemma, gemma3
from cutaway.weights.family import Field, Only, Settings, shared


def gguf_scale(known: Settings) -> float | None:
    """The largest model, which llama.cpp tells by its layers, scales scores by width / heads."""
    return shared(known) ** -0.5 if known["layers"] == 46 else None


FAMILY = gemma.FAMILY.but(
    "gemma2",
    "Gemma2ForCausalLM",
    hf=naming.one_more(naming.HF_SANDWICH),
    gguf=(*naming.GGUF_PLAIN, *naming.GGUF_SANDWICH),
    rows=(
        *rows.replaced(rows.SIZES, gemma3.ACTIVATION),
        *rows.DENSE,
        rows.LayerTypes(pattern=2, key=None),
        gemma3.Scale("scale", "query_pre_attn_scalar", None, gemma3.SCALAR),
        Field("softcap", "final_logit_softcapping", "final_logit_softcapping", rows.FRACTION, missing=30.0),
        Field(
            "attention_softcap",
            "attn_logit_softcapping",
            "attn_logit_softcapping",
            rows.FRACTION,
            missing=50.0,
        ),
        *rows.biases("attention_bias"),
        Only("use_bidirectional_attention", None, (False, None), "attention to later tokens"),
    ),
    defaults={"kv_heads": 4, "heads": 8, "softcap": 30.0, "attention_softcap": 50.0, "scale": 256.0},
    nulls={"softcap": None, "attention_softcap": None},
    fixed={"post_norm": True},
    gguf_fixed={"scale": gguf_scale},
    folded=partial(gemma3.folded, gguf_scale=gguf_scale),
)
