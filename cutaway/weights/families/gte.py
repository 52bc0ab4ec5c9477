"""GTE (2407.19669), as gte-multilingual and gte-v1.5 have it: BERT that rotates, with gated MLPs.

The last matrix of an MLP alone has a bias.
"""

from cutaway.weights import naming, rotary, rows
from cutaway.weights.families import bert
from cutaway.weights.family import Field, shared
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import split

LAYER, OURS = "gte.encoder.layer.{n}", "blocks.{n}"


FAMILY = bert.FAMILY.but(
    "gte",
    "GteModel",
    modules=(
        *naming.query_key_value_apart("gte."),
        *naming.weights(
            *((f"gte.layers.{{n}}.mlp.{name}_proj", f"{OURS}.mlp.{name}") for name in ("gate", "up"))
        ),
        (".encoder.layer.", ".layers."),
        (".attention.o_proj.", ".self_attn.o_proj."),
        (".attn_ln.", ".post_attention_layernorm."),
        (".mlp_ln.", ".post_mlp_layernorm."),
    ),
    hf=(
        *naming.renamed((bert.HF[0], *bert.HF[2:5]), ("bert.", "gte.")),
        *naming.pairs(
            (f"{LAYER}.attention.o_proj", f"{OURS}.attention.out"),
            (f"{LAYER}.attn_ln", f"{OURS}.attention_norm"),
            (f"{LAYER}.mlp.down_proj", f"{OURS}.mlp.down"),
            (f"{LAYER}.mlp_ln", f"{OURS}.mlp_norm"),
        ),
        *(
            Rule(f"{LAYER}.attention.qkv_proj.{part}", naming.query_key_value(part), split)
            for part in ("weight", "bias")
        ),
        Rule(
            f"{LAYER}.mlp.up_gate_proj.weight", tuple(f"{OURS}.mlp.{n}.weight" for n in ("up", "gate")), split
        ),
    ),
    gguf=(),
    rows=(
        *rows.replaced(bert.FAMILY.rows, bert.Segments("segments", "type_vocab_size", None, bert.FROM_NONE)),
        Field("head_size", None, None),
        rotary.Rope(),
    ),
    defaults={"vocab": 250048, "context": 8192, "segments": 1, "rope_base": 160000.0} | {"head_size": shared},
    fixed={"learned": False, "gated": True, "down_bias": True},
    prefix="gte.",
    spellings=(*bert.FAMILY.spellings, ("new.", "gte.")),  # of published folders
    ignored_hf=("gte.embeddings.position_ids", "gte.pooler.*", "lm_head.*", "classifier.*"),
)
