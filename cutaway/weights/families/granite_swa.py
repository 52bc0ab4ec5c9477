"""Granite SWA (2026): Granite with local layers, attention sinks, and rotary bases by layer."""

from cutaway.weights import layer_ropes, naming, rows
from cutaway.weights.families import granite
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

SINKS = Rule("model.layers.{n}.self_attn.sinks", "blocks.{n}.attention.sinks", same)
LAYERS = rows.LayerTypes(4, key=None, usual=rows.all_but_every(4))

FAMILY = granite.FAMILY.but(
    "granite_swa",
    "GraniteSWAForCausalLM",
    hf=(*naming.HF_DECODER, SINKS),
    gguf=(),
    rows=(
        *rows.replaced(granite.FAMILY.rows, layer_ropes.RopeOfLayers()),
        LAYERS,
    ),
    defaults={"kv_heads": 4, "context": 8192, "eps": 1e-5, "tied": True, "window": 128},
    fixed={"sinks": True},
)
