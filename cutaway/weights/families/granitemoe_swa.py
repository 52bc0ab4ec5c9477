"""Granite SWA with a mixture of experts, and an expert that all tokens pass (2026)."""

from cutaway.weights import layer_ropes, naming, rows
from cutaway.weights.families import granite_swa, granitemoe, granitemoeshared
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import each, same, split, stack

MOE = "model.layers.{n}.block_sparse_moe"

FAMILY = granitemoeshared.FAMILY.but(
    "granitemoe_swa",
    "GraniteMoeSWAForCausalLM",
    hf=(
        *naming.HF_DECODER,
        granite_swa.SINKS,
        Rule(f"{MOE}.router.weight", "blocks.{n}.mlp.router.weight", same),
        Rule(f"{MOE}.experts.gate_up_proj", granitemoe.BOTH, each(split, 2)),
        Rule(f"{MOE}.experts.down_proj", "blocks.{n}.mlp.experts.{e}.down.weight", stack),
        *granitemoeshared.HF_SHARED,
    ),
    gguf=(),
    rows=(
        *rows.replaced(granitemoeshared.FAMILY.rows, layer_ropes.RopeOfLayers()),
        granite_swa.LAYERS,
    ),
    defaults={"window": 128},
    fixed={"sinks": True},
)
