"""T5's encoder alone, for vectors of texts (Sentence-T5, 2108.08877): T5's config of class T5EncoderModel."""

from collections.abc import Iterable
from dataclasses import replace

from cutaway.model.config import Encoder
from cutaway.weights.families import t5
from cutaway.weights.family import Only
from cutaway.weights.rules import Rule

ENCODER = "encoder."
OF_BOTH = ("decoder_layers", "both", "scaled")
HALF_KEYS = ("num_decoder_layers", "is_encoder_decoder", "tie_word_embeddings", "scale_decoder_outputs")


def alone(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules of the encoder's weights and of the table, by the names of an encoder that is the model."""
    own = [(rule, rule.ours) for rule in rules if isinstance(rule.ours, str)]
    return tuple(
        replace(rule, ours=ours.removeprefix(ENCODER))
        for rule, ours in own
        if ours.startswith((ENCODER, "embedding."))
    )


FAMILY = t5.FAMILY.but(
    "t5_encoder",
    "T5EncoderModel",
    hf_type="t5",
    forget=OF_BOTH,
    hf=alone(t5.FAMILY.hf),
    gguf=(),
    rows=tuple(
        row
        for row in t5.FAMILY.rows
        if not isinstance(row, t5.Scaled)
        and getattr(row, "name", "") not in OF_BOTH
        and not (isinstance(row, Only) and row.hf in HALF_KEYS)
    ),
    build=t5.encoder,
    describe=t5.settings_of_half,
    config=Encoder,
    harmless=(*t5.FAMILY.harmless, *HALF_KEYS),
    ignored_hf=("decoder.*", "lm_head.*"),
    copies=t5.FAMILY.copies[:1],
    folded=None,
    instead=None,
)
