"""mT5 (2010.11934): T5 1.1 of 101 languages, whose head reads what the decoder outputs as it is."""

from cutaway.weights import rows
from cutaway.weights.families import t5
from cutaway.weights.family import Entries, Family, Settings
from cutaway.weights.fields import Fields


class Unscaled(t5.Scaled):
    """Whether the head is the table."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        return {"tied": fields.flag("tie_word_embeddings", True), "scaled": False}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"tie_word_embeddings": known["tied"]}


FAMILY = t5.FAMILY.but(
    "mt5",
    "MT5ForConditionalGeneration",
    gguf=(),
    rows=rows.replaced(t5.FAMILY.rows, Unscaled(), t5.Projection("gated-gelu")),
    defaults={"vocab": 250112, "hidden": 1024, "layers": 8, "heads": 6},
    harmless=(*t5.FAMILY.harmless, "scale_decoder_outputs"),
    instead=None,
)
