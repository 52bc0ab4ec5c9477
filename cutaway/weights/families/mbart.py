"""mBART (2001.08210) and mBART-50: BART with norms before each half of a block, and one after the last."""

from cutaway.weights.families import bart
from cutaway.weights.family import Only

FAMILY = bart.FAMILY.but(
    "mbart",
    "MBartForConditionalGeneration",
    hf=(*bart.FAMILY.hf, *bart.LAST_NORMS),
    rows=(
        *bart.ROWS,
        *bart.BEFORE,
        Only("normalize_embedding", None, (True,), "no norm after the embeddings"),
        bart.LEARNED,
        Only(
            "extra_pos_embeddings", None, (bart.OFFSET,), "another number of rows before the first position"
        ),
    ),
    fixed={"norm_first": True},
)
