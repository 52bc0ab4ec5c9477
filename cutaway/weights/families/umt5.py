"""umT5 (2304.09151): mT5 whose layers have a table of distances each."""

from dataclasses import replace

from cutaway.model.config import EncoderDecoder
from cutaway.weights import rows
from cutaway.weights.families import t5
from cutaway.weights.family import Settings

ONE, EACH = ".block.0.layer.0.SelfAttention.relative", ".block.{n}.layer.0.SelfAttention.relative"


def model(known: Settings) -> EncoderDecoder:
    """The model of these settings."""
    of = t5.model(known)
    encoder, decoder = (replace(half, one_relative=False) for half in (of.encoder, of.decoder))
    return replace(of, encoder=encoder, decoder=decoder)


FAMILY = t5.FAMILY.but(
    "umt5",
    "UMT5ForConditionalGeneration",
    hf=tuple(
        replace(rule, theirs=rule.theirs.replace(ONE, EACH), ours=rule.ours.replace("blocks.0", "blocks.{n}"))
        if isinstance(rule.ours, str)
        else rule
        for rule in t5.FAMILY.hf
    ),
    gguf=(),
    folded=None,
    rows=rows.replaced(t5.FAMILY.rows, t5.Projection("gated-gelu")),
    build=model,
    defaults={"vocab": 250112, "hidden": 1024, "layers": 8, "heads": 6},
    instead=None,
)
