"""Gemma (2403.08295): llama's block with GeGLU and large heads; embeddings times the root of the width.

A folder's norms hold w where x is multiplied by w + 1.
"""

import numpy as np

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import Field, Only, Settings, words

WORDS = rows.ACTIVATIONS | {"gelu": "gelu_tanh"}  # transformers too takes the one for the other


def embedding_scale(known: Settings) -> float:
    """The root of the width, as float32 holds it."""
    return float(np.float32(known["width"] ** 0.5))


FAMILY = llama.FAMILY.but(
    "gemma",
    "GemmaForCausalLM",
    hf=naming.one_more(naming.HF_DECODER),
    gguf=naming.GGUF_PLAIN,
    rows=(
        *rows.replaced(
            rows.SIZES, Field("activation", "hidden_act", None, words(WORDS, rows.HF_ACTIVATIONS))
        ),
        *rows.DENSE,
        *rows.biases("attention_bias"),
        Only("use_bidirectional_attention", None, (False, None), "attention to later tokens"),
    ),
    defaults={"kv_heads": 16, "heads": 16, "head_size": 256, "context": 8192}
    | {"activation": "gelu_tanh", "tied": True},
    forget=("kv_heads", "head_size"),
    fixed={"embedding_scale": embedding_scale},
    gguf_fixed={"activation": "gelu_tanh", "tied": True},
    ignored_gguf=(),
)
