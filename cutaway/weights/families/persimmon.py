"""Persimmon (Adept, 2023): layer norms of each head's query and key, half of each head rotated, relu^2."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import FLAG, NUMBER, Field
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import beside

LAYER = "model.layers.{n}.self_attn"

FAMILY = llama.FAMILY.but(
    "persimmon",
    "PersimmonForCausalLM",
    hf=(
        *naming.renamed(
            naming.HF_DECODER,
            ("model.norm", "model.final_layernorm"),
            ("self_attn.o_proj", "self_attn.dense"),
            ("up_proj", "dense_h_to_4h"),
            ("down_proj", "dense_4h_to_h"),
            without=("q_proj", "k_proj", "v_proj", "gate_proj"),
        ),
        *naming.pairs(
            (f"{LAYER}.q_layernorm", "blocks.{n}.attention.query_norm"),
            (f"{LAYER}.k_layernorm", "blocks.{n}.attention.key_norm"),
        ),
        *(
            Rule(f"{LAYER}.query_key_value.{part}", naming.query_key_value(part), beside("heads"))
            for part in ("weight", "bias")
        ),
    ),
    gguf=(),
    rows=(
        *rows.replaced(
            rows.turning(rows.SIZES, part=0.5),
            Field("eps", "layer_norm_eps", None, NUMBER),
            Field("kv_heads", None, None),
            Field("head_size", None, None),
        ),
        *rows.DENSE,
        Field("qk_norm", "qk_layernorm", None, FLAG),
    ),
    defaults={"context": 16384, "eps": 1e-5, "activation": "relu2", "qk_norm": True},
    forget=("kv_heads", "head_size"),
    fixed={"norm": "layer", "gated": False, "bias": True, "out_bias": True, "mlp_bias": True},
    harmless=("num_key_value_heads",),
)
