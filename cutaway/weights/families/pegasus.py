"""PEGASUS (1912.08777): BART with sinusoids and norms before each half of a block, one after the last."""

from cutaway.model.config import EncoderDecoder
from cutaway.position import sinusoidal
from cutaway.weights.families import bart
from cutaway.weights.family import Settings


def model(known: Settings) -> EncoderDecoder:
    """The model of these settings."""
    return bart.model(known | {"position": sinusoidal.Config(interleaved=False)})


FAMILY = bart.FAMILY.but(
    "pegasus",
    "PegasusForConditionalGeneration",
    hf=(*bart.HF, *bart.LAST_NORMS),
    rows=(*bart.ROWS, *bart.BEFORE, bart.NO_NORM, bart.SINES),
    build=model,
    forget=("position",),
    fixed={"embedding_norm": False, "norm_first": True},
    harmless=(*bart.FAMILY.harmless, "extra_pos_embeddings", "classifier_dropout"),
    ignored_hf=(*bart.FAMILY.ignored_hf, "model.*.embed_positions.weight"),
    sines={f"model.{half}.embed_positions.weight": 10000.0 for half in ("encoder", "decoder")},
)
