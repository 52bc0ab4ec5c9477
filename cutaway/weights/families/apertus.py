"""Apertus (2509.14233): llama's block with normed queries and keys, and an ungated MLP around xIELU."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import Field, words
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

WORDS = {"xielu": "xielu"}
NUMBERS = ("alpha_p", "alpha_n", "beta", "eps")  # of each layer's activation


FAMILY = llama.FAMILY.but(
    "apertus",
    "ApertusForCausalLM",
    hf=(
        *naming.renamed(
            (*naming.HF_DECODER, *naming.HF_QK_NORM),
            ("input_layernorm", "attention_layernorm"),
            ("post_attention_layernorm", "feedforward_layernorm"),
        ),
        *(
            Rule(f"model.layers.{{n}}.mlp.act_fn.{name}", f"blocks.{{n}}.mlp.activation.{name}", same)
            for name in NUMBERS
        ),
    ),
    gguf=(
        *naming.GGUF_EMBEDDINGS,
        *naming.GGUF_NORMS,
        *naming.weights(*naming.GGUF_QUERY_KEY, naming.GGUF_VALUE, naming.GGUF_OUT, *naming.GGUF_MLP[1:]),
        *naming.GGUF_QK_NORM,
        *(Rule(f"blk.{{n}}.xielu.{name}", f"blocks.{{n}}.mlp.activation.{name}", same) for name in NUMBERS),
    ),
    gguf_numbers=tuple(f"xielu.{name}" for name in NUMBERS),
    rows=(
        *rows.replaced(
            rows.turning(rows.SIZES, required=True),
            Field("activation", "hidden_act", None, words(WORDS, WORDS)),
        ),
        *rows.DENSE,
        *rows.biases("attention_bias"),
    ),
    defaults={"context": 65536, "eps": 1e-5, "activation": "xielu", "rope_base": 1.2e7},
    fixed={"qk_norm": True, "gated": False},
    gguf_fixed={"activation": "xielu"},
)
