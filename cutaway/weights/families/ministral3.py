"""Ministral 3 (2026): Mistral with YaRN, and queries that grow with their position."""

from cutaway.attention.common.heads import Temperature
from cutaway.weights import common
from cutaway.weights.families import mistral
from cutaway.weights.family import Entries, Family, Field, Settings
from cutaway.weights.fields import Fields

BETA = "llama_4_scaling_beta"


class Rope(common.Rope):
    """The strength of the growth is among the keys of the positions, and so is the length of a step."""

    def of(self, given: Fields | None, *rest):  # type: ignore[no-untyped-def]
        if given is not None:
            for key in (BETA, "max_position_embeddings"):
                given.get(key)
        return super().of(given, *rest)

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super().read(fields, known, own)
        older = fields.section("rope_scaling")
        given = older if older and older.data else fields.section("rope_parameters")
        if given is None:
            raise fields.refusal("rope_parameters", "is missing: these positions have no usual scaling")
        original = given.integer(common.ORIGINAL)
        return found | {"temperature": Temperature(given.number(BETA), original)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries, growth = super().write(known, gguf), known["temperature"]
        if growth and entries.get("rope_scaling"):
            entries["rope_scaling"] |= {BETA: growth.beta, common.ORIGINAL: growth.original}
        return entries


FAMILY = mistral.FAMILY.but(
    "ministral3",
    "Ministral3ForCausalLM",
    gguf=(),
    rows=(
        *(Rope() if isinstance(row, common.Rope) else row for row in common.SIZES),
        *common.DENSE,
        Field("window", "sliding_window", None),
    ),
    defaults={"head_size": 128, "context": 262144, "eps": 1e-5, "window": None},
)
