"""MiniCPM3 (2024): DeepSeek's latent attention, rotated in halves, in a dense model whose sums are scaled."""

import math

from cutaway.weights import common
from cutaway.weights.families import deepseek_v3, llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields


class Scales(Row):
    """What multiplies what a layer adds, by the number of layers, and logits, by the model's width."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        root, width = math.sqrt(known["layers"]), known["width"]
        # A null is a scale of 1, a key that is left out the published model's.
        depth = fields.number("scale_depth", root if fields.has("scale_depth") else 1.4)
        base = fields.integer("dim_model_base", width if fields.has("dim_model_base") else 256)
        return {"residual": depth / root, "logit_scale": base / width}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {
            "scale_depth": known["residual"] * math.sqrt(known["layers"]),
            "dim_model_base": round(known["logit_scale"] * known["width"]),
        }


FAMILY = deepseek_v3.FAMILY.but(
    "minicpm3",
    "MiniCPM3ForCausalLM",
    hf=(*common.renamed(common.HF_DECODER, without=("self_attn",)), *deepseek_v3.HF_LATENT),
    gguf=(),
    rows=(
        Field("interleaved", None, None, FLAG),
        *(deepseek_v3.Rope() if isinstance(row, common.Rope) else row for row in deepseek_v3.SIZES[1:]),
        *common.DENSE[:1],
        *llama.FAMILY.rows[-1:],
        Field("embedding_scale", "scale_emb", None, NUMBER),
        Scales(),
        Only("attention_bias", None, (False,), "a bias in latent attention"),
    ),
    defaults={"interleaved": False, "head_size": 32, "key_size": 64, "latent": 256, "query_latent": 768}
    | {"value_size": lambda known: known["width"] // known["heads"], "embedding_scale": 12.0}
    | {"eps": 1e-5, "context": 32768, "tied": True, "mlp_bias": False},
    nulls={"value_size": lambda known: known["width"] // known["heads"]},
    forget=("score", "choice_bias", "group_of_two"),
    sparse=False,
    harmless=(*deepseek_v3.FAMILY.harmless, "pretraining_tp"),
)
