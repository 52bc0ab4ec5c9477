"""Phi-1, 1.5 and 2 (2309.05463): attention and MLP side by side behind one layer norm, biases everywhere."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import FLAG, NUMBER, Field, Only, words

WORDS = {**rows.HF_ACTIVATIONS, "gelu_tanh": "gelu_new"}

ALIASES = ("phi2",)

FAMILY = llama.FAMILY.but(
    "phi",
    "PhiForCausalLM",
    hf=naming.renamed(
        (
            *naming.HF_DECODER,
            *naming.pairs(
                ("model.layers.{n}.self_attn.q_layernorm", "blocks.{n}.attention.query_norm"),
                ("model.layers.{n}.self_attn.k_layernorm", "blocks.{n}.attention.key_norm"),
            ),
        ),
        ("o_proj", "dense"),
        ("up_proj", "fc1"),
        ("down_proj", "fc2"),
        ("model.norm", "model.final_layernorm"),
    ),
    gguf=naming.GGUF_BIASED,
    rows=(
        *rows.replaced(
            rows.turning(rows.SIZES, part=0.5),
            Field("eps", "layer_norm_eps", "attention.layer_norm_epsilon", NUMBER),
            Field("activation", "hidden_act", None, words(rows.ACTIVATIONS, WORDS)),
        ),
        *rows.DENSE,
        Field("qk_norm", "qk_layernorm", None, FLAG),
        Only("tie_word_embeddings", None, (False,), "a tied head with a bias"),
    ),
    defaults={"eps": 1e-5, "activation": "gelu_tanh", "qk_norm": False},
    fixed={"norm": "layer", "parallel": "shared", "gated": False, "head_bias": True}
    | {"bias": True, "out_bias": True, "mlp_bias": True},
    architecture="phi2",
    gguf_fixed={"activation": "gelu_tanh", "qk_norm": False, "tied": False},
    ignored_gguf=(),
)
