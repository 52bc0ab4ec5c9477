"""PLBART (2103.06333), of programs: BART with scaled embeddings."""

from cutaway.weights.families import bart

FAMILY = bart.FAMILY.but(
    "plbart",
    "PLBartForConditionalGeneration",
    defaults={"vocab": 50005, "width": 768, "scale_embedding": True}
    | {f"{half}_layers": 6 for half in ("encoder", "decoder")}
    | {f"{half}_heads": 12 for half in ("encoder", "decoder")}
    | {f"{half}_hidden": 3072 for half in ("encoder", "decoder")},
)
