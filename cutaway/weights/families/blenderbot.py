"""BlenderBot (2004.13637): BART with norms before each half of a block, one after the last."""

from cutaway.weights.families import bart
from cutaway.weights.family import Only

FAMILY = bart.FAMILY.but(
    "blenderbot",
    "BlenderbotForConditionalGeneration",
    hf=(*bart.HF, *bart.TABLES, *bart.LAST_NORMS),
    rows=(
        *bart.ROWS,
        *bart.BEFORE,
        bart.NO_NORM,
        bart.LEARNED,
        Only("extra_pos_embeddings", None, (0,), "rows before the first position"),
        Only("layernorm_variant", None, ("prelayernorm",), "norms after each half"),
    ),
    defaults={"vocab": 8008, "width": 2560, "context": 128, "encoder_layers": 2, "decoder_layers": 24}
    | {f"{half}_heads": 32 for half in ("encoder", "decoder")}
    | {f"{half}_hidden": 10240 for half in ("encoder", "decoder")},
    fixed={"embedding_norm": False, "norm_first": True, "offset": 0},
    harmless=(*bart.FAMILY.harmless, "do_blenderbot_90_layernorm"),
)
