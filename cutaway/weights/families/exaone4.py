"""EXAONE 4 (2507.11407): norms after each half and none before, normed queries and keys.

Of four layers three are local; the global ones have no positions, unless all are global.
"""

from cutaway.errors import UserError
from cutaway.weights import rows
from cutaway.weights.families import olmo2
from cutaway.weights.family import Entries, Family, Settings
from cutaway.weights.fields import Fields


def nope(known: Settings) -> tuple[bool, ...]:
    """The layers without positions."""
    return tuple(window is None and known["window"] is not None for window in known["windows"])


class LayerTypes(rows.LayerTypes):
    """Without a window global layers have positions too; the pattern counts where no layers are listed."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return super().read(fields, known, own)
        listed = fields.each_layer("layer_types", known["layers"], (rows.SLIDING, rows.FULL))
        pattern = self.pattern
        if listed is None and fields.stated("sliding_window_pattern"):
            pattern = fields.integer("sliding_window_pattern")
        fields.get("sliding_window_pattern")
        found = rows.LayerTypes(pattern, key=None).read(fields, known, own)
        if found["window"] is None and (listed is None or rows.SLIDING in listed):
            raise fields.refusal(
                "sliding_window", "is null, but layers are local: list full_attention for all"
            )
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf and any(known["windows"]):
            raise UserError("a window, but for 64 layers, is not supported by llama.cpp")
        entries = super().write(known, gguf)
        plain = not any(known["windows"]) and not any(known["nope"])
        return entries | ({"sliding_window": None} if plain and not gguf else {})


FAMILY = olmo2.FAMILY.but(
    "exaone4",
    "Exaone4ForCausalLM",
    rows=(*rows.SIZES, *rows.DENSE, LayerTypes(pattern=4, key=None)),
    defaults={"kv_heads": 32, "window": 4096},
    nulls={"window": None},
    forget=("qk_norm_over", "kv_heads", "tied"),
    fixed={"nope": nope, "bias": False, "out_bias": False},
    architecture="exaone4",
)
