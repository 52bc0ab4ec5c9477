"""EmbeddingGemma (2509.20354): Gemma 3 whose tokens see both sides; local layers half a window to each.

Its config is Gemma 3's with a flag. The dense layers after its pooling are in folders of their own
(weights/pooling.py).
"""

from cutaway.errors import UserError
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import bidirectional_decoders, rows
from cutaway.weights.bidirectional_decoders import last_norm
from cutaway.weights.families import gemma3
from cutaway.weights.family import FLAG, Entries, Field, Only, Settings

ALIASES = ("gemma-embedding",)


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    return bidirectional_decoders.settings(config) | {"both_sides": True, "softcap": None}


class LayerTypes(rows.LayerTypes):
    """llama.cpp ends the process at a model that has no local layer, and at one that has no global layer."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf and not any(known["windows"]):
            raise UserError("an EmbeddingGemma without local layers is not supported in GGUF")
        if gguf and all(known["windows"]):
            raise UserError("an EmbeddingGemma without global layers is not supported in GGUF")
        return super().write(known, gguf)


FAMILY = gemma3.FAMILY.but(
    "embedding_gemma",
    "Gemma3TextModel",
    hf_type="gemma3_text",
    hf=last_norm(gemma3.FAMILY.hf, "model.norm."),
    gguf=last_norm(gemma3.FAMILY.gguf, "output_norm."),
    rows=(
        *rows.replaced(
            gemma3.FAMILY.rows, LayerTypes(pattern=6), without=("use_bidirectional_attention", "is_causal")
        ),
        Only("is_causal", "attention.causal", (False,), "attention to earlier tokens alone"),
        Field("both_sides", "use_bidirectional_attention", None, FLAG),
    ),
    gguf_fixed={"scale": None},
    architecture="gemma-embedding",
    ignored_gguf=("dense_2.weight", "dense_3.weight"),  # which weights/pooling.py reads
    build=bidirectional_decoders.encoder,
    describe=settings,
    config=Encoder,
    instead=None,
)
