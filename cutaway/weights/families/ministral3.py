"""Ministral 3 (2026): Mistral with YaRN, and queries that grow with their position."""

from dataclasses import replace

from cutaway.attention.common.heads import Temperature
from cutaway.errors import UserError
from cutaway.position import rope
from cutaway.position.scaling import YaRN, sharpening
from cutaway.weights import rotary, rows
from cutaway.weights.families import mistral
from cutaway.weights.family import Entries, Family, Field, Settings
from cutaway.weights.fields import Fields

ALIASES = ("mistral3",)
BETA, MULTIPLIER = "llama_4_scaling_beta", "rope.scaling.yarn_log_multiplier"


class Rope(rotary.Rope):
    """The strength of the growth is among the keys of the positions, and so is the length of a step."""

    def of(self, given: Fields | None, *rest):  # type: ignore[no-untyped-def]
        if given is not None:
            for key in (BETA, "max_position_embeddings"):
                given.get(key)
        return super().of(given, *rest)

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super().read(fields, known, own)
        if fields.gguf:
            return found | self._from_gguf(fields, found["rope"])
        older = fields.section("rope_scaling")
        given = older if older and older.data else fields.section("rope_parameters")
        if given is None:
            raise fields.refusal("rope_parameters", "is missing: these positions have no usual scaling")
        original = given.integer(rotary.ORIGINAL)
        beta = given.number(BETA, low=-1.0)
        if beta == 0:  # queries that do not grow
            return found | {"temperature": None}
        return found | {"temperature": Temperature(given.number(BETA), original)}

    def _from_gguf(self, fields: Fields, position: rope.Config) -> Settings:
        """llama.cpp's growth steps at YaRN's original length; a multiplier of 1 leaves sine and cosine."""
        found: Settings = {"rope": position}
        if isinstance(position.scaling, YaRN) and fields.has(MULTIPLIER):
            fields.only(MULTIPLIER, (1.0,), "another mscale than 1")
            scale = position.scaling.magnitude / sharpening(position.scaling.factor)
            found["rope"] = replace(position, scaling=replace(position.scaling, attention=scale))
        beta = fields.number("attention.temperature_scale", None)
        if beta is not None:
            found["temperature"] = Temperature(beta, fields.integer("rope.scaling.original_context_length"))
        return found

    def _to_gguf(self, entries: Entries, known: Settings) -> Entries:
        scaling, growth = known["rope"] and known["rope"].scaling, known["temperature"]
        if not isinstance(scaling, YaRN):
            raise UserError("positions scaled otherwise than by YaRN is not supported in GGUF")
        if scaling.attention == 1.0:  # as llama.cpp's own converter writes it
            entries.pop("rope.scaling.attn_factor", None)
            entries[MULTIPLIER] = 1.0
        return entries | ({"attention.temperature_scale": float(growth.beta)} if growth else {})

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries, growth = super().write(known, gguf), known["temperature"]
        if gguf:
            return self._to_gguf(entries, known)
        if entries.get("rope_scaling"):
            entries["rope_scaling"] |= {BETA: growth.beta if growth else 0.0}
        if growth and entries.get("rope_scaling"):
            entries["rope_scaling"] |= {rotary.ORIGINAL: growth.original}
        return entries


FAMILY = mistral.FAMILY.but(
    "ministral3",
    "Ministral3ForCausalLM",
    architecture="mistral3",
    rows=(
        *rows.replaced(rows.SIZES, Rope(betas=True)),
        *rows.DENSE,
        Field("window", "sliding_window", None),
    ),
    defaults={"head_size": 128, "context": 262144, "eps": 1e-5, "window": None},
)
