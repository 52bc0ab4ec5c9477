"""M2M-100 (2010.11125) and NLLB (2207.04672): mBART with sinusoids and no bias of logits.

The first position comes after the padding id's. The slowest sinusoid turns by 1/10,000 a token, as in
tensor2tensor.
"""

from cutaway.model.config import EncoderDecoder
from cutaway.position import sinusoidal
from cutaway.weights.families import bart
from cutaway.weights.family import Entries, Family, Row, Settings
from cutaway.weights.fields import Fields

BASE = 10000.0


class Padding(Row):
    """The padding id: positions count from the number after it."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        key = "pad_token_id"
        return {"offset": (fields.integer(key, low=0) if fields.stated(key) else 1) + 1}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"pad_token_id": known["offset"] - 1}


def model(known: Settings) -> EncoderDecoder:
    """The model of these settings."""
    half = known["width"] // 2
    base = BASE ** (half / max(half - 1, 1))
    sines = sinusoidal.Config(base, interleaved=False, offset=known["offset"])
    return bart.model(known | {"position": sines})


def settings(config: EncoderDecoder) -> Settings:
    """The settings of a config."""
    return bart.settings(config) | {"offset": config.encoder.offset}


FAMILY = bart.FAMILY.but(
    "m2m_100",
    "M2M100ForConditionalGeneration",
    hf=(*(rule for rule in bart.HF if rule.theirs != "final_logits_bias"), *bart.LAST_NORMS),
    rows=(*bart.ROWS, *bart.BEFORE, bart.NO_NORM, bart.SINES, Padding()),
    build=model,
    describe=settings,
    forget=("position",),
    defaults={"vocab": 128112, "activation": "relu", "scale_embedding": True},
    fixed={"embedding_norm": False, "norm_first": True, "logits_bias": False},
    harmless=(*bart.FAMILY.harmless, "extra_pos_embeddings"),
    ignored_hf=(*bart.FAMILY.ignored_hf, "model.*.embed_positions.weights"),
    zeros=(),
)
