"""Granite 3 MoE with an expert that all tokens pass (2025)."""

from cutaway.weights import naming
from cutaway.weights.families import granitemoe
from cutaway.weights.family import Field, Kind
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same, split

SHARED = "model.layers.{n}.shared_mlp"
HF_SHARED = (
    Rule(
        f"{SHARED}.input_linear.weight",
        ("blocks.{n}.mlp.shared.gate.weight", "blocks.{n}.mlp.shared.up.weight"),
        split,
    ),
    Rule(f"{SHARED}.output_linear.weight", "blocks.{n}.mlp.shared.down.weight", same),
)
OR_NONE = Kind(lambda fields, key: fields.integer(key, low=0))
SIZE = Field("shared", "shared_intermediate_size", "expert_shared_feed_forward_length", OR_NONE, missing=0)

FAMILY = granitemoe.FAMILY.but(
    "granitemoeshared",
    "GraniteMoeSharedForCausalLM",
    hf=(*granitemoe.FAMILY.hf, *HF_SHARED),
    gguf=(*granitemoe.FAMILY.gguf, *naming.GGUF_SHARED_EXPERT[1:]),
    rows=(*granitemoe.FAMILY.rows, SIZE),
    defaults={"shared": 0},
    architecture="granitemoe",
    instead=None,
)
