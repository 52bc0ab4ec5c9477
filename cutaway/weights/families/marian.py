"""Marian (1804.00344), as OPUS-MT has it: BART with sinusoids and no norm after the embeddings.

All sines are before all cosines. Source and target may have vocabularies of their own.
"""

from cutaway.model.config import EncoderDecoder
from cutaway.position import sinusoidal
from cutaway.weights.families import bart
from cutaway.weights.family import FLAG, Field, Settings


def model(known: Settings) -> EncoderDecoder:
    """The model of these settings."""
    one_table = known["shared"] and known["tied"]
    return bart.model(known | {"position": sinusoidal.Config(interleaved=False), "shared": one_table})


def same_vocab(known: Settings) -> int:
    """As many target tokens as source tokens."""
    return known["vocab"]


FAMILY = bart.FAMILY.but(
    "marian",
    "MarianMTModel",
    hf=bart.HF,
    rows=(
        *bart.ROWS,
        *bart.AFTER,
        Field("target_vocab", "decoder_vocab_size", None),
        Field("shared", "share_encoder_decoder_embeddings", None, FLAG),
        bart.NO_NORM,
        bart.SINES,
    ),
    build=model,
    defaults={"vocab": 58101, "target_vocab": same_vocab, "shared": True},
    nulls={"target_vocab": same_vocab},
    forget=("target_vocab", "shared", "position"),
    fixed={"embedding_norm": False},
    harmless=(*bart.FAMILY.harmless, "extra_pos_embeddings"),
    ignored_hf=(*bart.FAMILY.ignored_hf, "model.*.embed_positions.weight"),
    sines={f"model.{half}.embed_positions.weight": 10000.0 for half in ("encoder", "decoder")},
)
