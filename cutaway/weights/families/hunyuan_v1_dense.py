"""Hunyuan dense (2025): llama's block, but queries and keys are normed after their rotation.

Its files may state ``alpha``, a fixed NTK factor: the rotary base is rope_theta * alpha^(d / (d - 2)), with d
the size of a head.
"""

from cutaway.position import rope
from cutaway.position.scaling import NTK
from cutaway.weights import naming, rotary, rows
from cutaway.weights.families import llama
from cutaway.weights.family import Entries, Settings
from cutaway.weights.fields import Fields

ALIASES = ("hunyuan-dense",)


class Rope(rotary.Rope):
    """``dynamic`` positions with an ``alpha`` are those of NTK with that factor, and do not change."""

    def of(self, given: Fields | None, *rest):  # type: ignore[no-untyped-def]
        """As `rotary.Rope.of`; UserError for an ``alpha`` beside another type than dynamic."""
        alpha = given.get("alpha") if given is not None else None
        if given is None or not alpha:
            return super().of(given, *rest)
        word = given.get("rope_type" if given.has("rope_type") else "type")
        if word != "dynamic":
            raise given.refusal("alpha", "is there, but the type is not dynamic")
        for key in ("factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "type", rotary.ORIGINAL):
            given.get(key)  # most of which transformers does not read beside an alpha
        base = given.number("rope_theta", low=1.0) if given.stated("rope_theta") else rest[1]
        given.finish((), "these rotary positions have")
        return rope.Config(rest[0]["head_size"], base, NTK(given.number("alpha")))

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries, scaling = super().write(known, gguf), known["rope"] and known["rope"].scaling
        if isinstance(scaling, NTK) and not gguf:
            entries["rope_scaling"] = {"rope_type": "dynamic", "alpha": scaling.factor, "factor": 1.0}
        return entries


FAMILY = llama.FAMILY.but(
    "hunyuan_v1_dense",
    "HunYuanDenseV1ForCausalLM",
    hf=naming.renamed(
        (*naming.HF_DECODER, *naming.HF_QK_NORM), ("q_norm", "query_layernorm"), ("k_norm", "key_layernorm")
    ),
    gguf=(*naming.GGUF_PLAIN, *naming.GGUF_QK_NORM),
    rows=(
        *rows.replaced(rows.SIZES, Rope()),
        *rows.DENSE,
        *rows.biases("attention_bias"),
    ),
    defaults={"eps": 1e-5},
    fixed={"qk_norm": True, "qk_norm_after": True},
    harmless=("eod_token_id",),
    architecture="hunyuan-dense",
    ignored_gguf=(),
)
