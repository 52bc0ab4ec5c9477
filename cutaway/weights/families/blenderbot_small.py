"""BlenderBot of 90 million weights (2004.13637): BART whose decoder norms embeddings before positions."""

from dataclasses import replace

from cutaway.model.config import EncoderDecoder
from cutaway.weights.families import bart
from cutaway.weights.family import Only, Settings

ALIASES = ("blenderbot-small",)


def model(known: Settings) -> EncoderDecoder:
    """The model of these settings; only its encoder's embeddings are scaled."""
    of = bart.model(known)
    return replace(of, decoder=replace(of.decoder, embedding_scale=1.0, norm_then_position=True))


FAMILY = bart.FAMILY.but(
    "blenderbot_small",
    "BlenderbotSmallForConditionalGeneration",
    hf_type="blenderbot-small",
    rows=(
        *bart.ROWS,
        *bart.AFTER,
        Only("normalize_embedding", None, (True,), "no norm after the embeddings"),
        bart.LEARNED,
        Only("extra_pos_embeddings", None, (0,), "rows before the first position"),
        Only("layernorm_variant", None, ("xlm",), "norms before each half"),
    ),
    defaults={"width": 512, "context": 512}
    | {f"{half}_layers": 8 for half in ("encoder", "decoder")}
    | {f"{half}_hidden": 2048 for half in ("encoder", "decoder")},
    build=model,
    fixed={"offset": 0},
    harmless=(*bart.FAMILY.harmless, "do_blenderbot_90_layernorm"),
)
