"""SmolLM3 (2025): llama's block; every fourth layer has no positions (NoPE, 2305.19466)."""

from cutaway.weights import rows
from cutaway.weights.families import llama
from cutaway.weights.family import Entries, Family, Only, Row, Settings
from cutaway.weights.fields import Fields


class Nope(Row):
    """The layers without positions: a list with 1 for each layer that has them, or an interval."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers = known["layers"]
        interval = 4 if fields.gguf else fields.integer("no_rope_layer_interval", 4)
        rotary = None if fields.gguf else fields.get("no_rope_layers")
        if rotary is None:
            rotary = [int((n + 1) % interval != 0) for n in range(layers)]
        if not isinstance(rotary, list) or len(rotary) != layers or any(n not in (0, 1) for n in rotary):
            raise fields.refusal("no_rope_layers", f"should be 0 or 1 for each of {layers} layers")
        return {"nope": tuple(not n for n in rotary)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf else {"no_rope_layers": [int(not nope) for nope in known["nope"]]}


FAMILY = llama.FAMILY.but(
    "smollm3",
    "SmolLM3ForCausalLM",
    rows=(
        *rows.SIZES,
        *rows.DENSE,
        *rows.biases("attention_bias"),
        Only("mlp_bias", None, (False,), "a bias in the MLP"),
        rows.NoWindows(),
        Nope(),
    ),
    defaults={"kv_heads": 4, "context": 32768, "tied": True, "rope_base": 2e6},
    gguf_fixed={"bias": False, "out_bias": False},
)
