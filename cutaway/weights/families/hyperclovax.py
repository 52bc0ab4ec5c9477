"""HyperCLOVA X SEED Think (2506.22403): Granite's multipliers, and norms before and after each half."""

from cutaway.weights import naming, rows
from cutaway.weights.families import granite
from cutaway.weights.family import FLAG, NUMBER, Family, Field, Settings


class Scale(Field):
    """The factor of scores; without one, 1 / sqrt(k)."""

    def read(self, fields, known: Settings, own: Family) -> Settings:  # type: ignore[no-untyped-def]
        found = super().read(fields, known, own)
        usual = known["head_size"] ** -0.5
        return {"scale": None if found["scale"] in (None, usual) else found["scale"]}


FAMILY = granite.FAMILY.but(
    "hyperclovax",
    "HyperCLOVAXForCausalLM",
    hf=(
        *naming.HF_DECODER,
        *naming.pairs(
            ("model.layers.{n}.post_norm1", "blocks.{n}.attention_post_norm"),
            ("model.layers.{n}.post_norm2", "blocks.{n}.mlp_post_norm"),
        ),
    ),
    gguf=(),
    rows=(
        *rows.replaced(
            granite.FAMILY.rows,
            Field("logit_scale", "logits_scaling", None, NUMBER),
            Scale("scale", "attention_multiplier", None, NUMBER),
        ),
        Field("post_norm", "use_post_norm", None, FLAG),
    ),
    defaults={"scale": None, "post_norm": True},
    nulls={"scale": None},
)
