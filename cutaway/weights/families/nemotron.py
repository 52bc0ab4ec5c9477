"""Nemotron 3 and 4, Minitron (2402.16819, 2407.14679): layer norms of w + 1, partial rotation, relu^2."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Field
from cutaway.weights.rules import how_of
from cutaway.weights.tensor_maps import plus_one

EPS = Field("eps", "norm_eps", "attention.layer_norm_epsilon", NUMBER)

FAMILY = llama.FAMILY.but(
    "nemotron",
    "NemotronForCausalLM",
    hf=how_of(naming.HF_DECODER, {"norm.weight": plus_one}),
    gguf=naming.GGUF_BIASED,
    rows=(*rows.replaced(rows.turning(rows.SIZES, part=0.5), EPS), *rows.DENSE, *llama.FAMILY.rows[-3:]),
    defaults={"context": 4096, "eps": 1e-5, "activation": "relu2"},
    forget=("kv_heads",),
    fixed={"norm": "layer", "gated": False},
    gguf_fixed={"activation": "relu2", "tied": False},
    ignored_gguf=(),
)
