"""OLMo 3 (2512.13961): OLMo 2 with three local layers to one global, whose positions alone are scaled."""

from dataclasses import replace

from cutaway.position import rope
from cutaway.weights import rotary, rows
from cutaway.weights.families import olmo2
from cutaway.weights.family import Entries, Family, Settings
from cutaway.weights.fields import Fields


class Ropes(rotary.Rope):
    """Positions by the kind of layer; the older layout scales those of global layers alone."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            found = super().read(fields, known, own)
            return found | {"local_rope": replace(found["rope"], scaling=None)}
        given, older, base = fields.section("rope_parameters"), fields.section("rope_scaling"), 5e5
        if older is not None and older.data and given is None:
            return self._older(fields, older, known, base)
        if older or (given and fields.has("rope_theta")):
            raise fields.refusal("rope_scaling", "is stated twice: leave it in rope_parameters alone")
        if fields.stated("rope_theta") and fields.number("rope_theta") != base:
            raise fields.refusal("rope_theta", f"other than {base:g} is read in rope_parameters alone")
        found = {}
        for kind, name in ((rows.FULL, "rope"), (rows.SLIDING, "local_rope")):
            section = given.section(kind) if given else None
            found[name] = self.of_kind(section, known, base)
        if given:
            given.finish((), "OLMo 3's rotary positions have")
        return found

    def _older(self, fields: Fields, given: Fields, known: Settings, base: float) -> Settings:
        """The layout of OLMo 3 as it was published: one scaling, of global layers.

        Transformers 5 gives local layers the usual base whatever ``rope_theta`` says, so another is refused.
        """
        if fields.stated("rope_theta") and fields.number("rope_theta") != base:
            raise fields.refusal("rope_theta", f"other than {base:g} is read in rope_parameters alone")
        return {"rope": self.of_kind(given, known, base), "local_rope": self.of(None, known, base)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return super().write(known, gguf)
        sections = {rows.FULL: known["rope"], rows.SLIDING: known["local_rope"]}
        usual = rope.Config(2, 5e5)
        return {
            "rope_parameters": {kind: rotary.hf_section(each or usual) for kind, each in sections.items()}
        }


class Layers(rows.LayerTypes):
    """Which layers are local; in GGUF three of four, which no key says."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries = super().write(known, gguf)
        return {key: value for key, value in entries.items() if not key.endswith("window_pattern")}


FAMILY = olmo2.FAMILY.but(
    "olmo3",
    "Olmo3ForCausalLM",
    architecture="olmo2",
    instead=None,
    rows=(
        *rows.replaced(rows.SIZES, Ropes()),
        *rows.DENSE,
        *rows.biases("attention_bias"),
        Layers(pattern=4, key=None),
    ),
    defaults={"rope_base": 5e5},
)
