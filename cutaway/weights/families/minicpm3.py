"""MiniCPM3 (2024): DeepSeek's latent attention, rotated in halves, in a dense model whose sums are scaled."""

import math

from cutaway.errors import UserError
from cutaway.weights import naming, rotary, rows
from cutaway.weights.families import deepseek_v3, llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields

DEPTH, BASE = 1.4, 256  # the published model's


class Rope(deepseek_v3.Rope):
    """llama.cpp sharpens no scores here."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return rotary.Rope.read(self, fields, known, own) | {"sharper": 1.0}
        return super().read(fields, known, own)

    def write(self, known: Settings, gguf: bool) -> Entries:
        return rotary.Rope.write(self, known, gguf) if gguf else super().write(known, gguf)


class HeadSizes(Row):
    """In GGUF keys are measured with the part that rotates, and keys and values are cached head by head."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if not fields.gguf:
            return {}
        fields.only("attention.head_count_kv", (known["heads"],), "fewer key-value heads than heads")
        size = fields.integer("attention.key_length") - known["head_size"]
        if size < 1:
            why = f"should be more than the {known['head_size']} that rotate"
            raise fields.refusal("attention.key_length", why)
        shared = known["width"] // known["heads"]
        return {"key_size": size, "value_size": fields.integer("attention.value_length", shared)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf:
            return {}
        if known["key_size"] % 2 or known["value_size"] == 1:
            raise UserError(
                "keys of an odd size beside what rotates, or values of 1, is not supported in GGUF"
            )
        sizes = {"key": known["key_size"] + known["head_size"], "value": known["value_size"]}
        return {f"attention.{name}_length": size for name, size in sizes.items()}


class Scales(Row):
    """The factors of a layer's addition (by the number of layers) and of the logits (by the width)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        root, width = math.sqrt(known["layers"]), known["width"]
        if fields.gguf:  # llama.cpp has the published model's
            return {"residual": DEPTH / root, "logit_scale": BASE / width}
        # A null is a scale of 1, a key that is left out the published model's.
        depth = fields.number("scale_depth", root if fields.has("scale_depth") else DEPTH)
        base = fields.integer("dim_model_base", width if fields.has("dim_model_base") else BASE)
        return {"residual": depth / root, "logit_scale": base / width}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return {}
        return {
            "scale_depth": known["residual"] * math.sqrt(known["layers"]),
            "dim_model_base": round(known["logit_scale"] * known["width"]),
        }


FAMILY = deepseek_v3.FAMILY.but(
    "minicpm3",
    "MiniCPM3ForCausalLM",
    hf=(*naming.renamed(naming.HF_DECODER, without=("self_attn",)), *deepseek_v3.HF_LATENT),
    gguf=(*(rule for rule in deepseek_v3.GGUF if rule not in deepseek_v3.SPLIT), deepseek_v3.JOINED),
    gguf_joined=(),
    rows=(
        Field("interleaved", None, None, FLAG),
        *rows.replaced(deepseek_v3.SIZES[1:], Rope(), without=("head_sizes",)),
        HeadSizes(),
        *rows.DENSE,
        *llama.FAMILY.rows[-1:],
        Field("embedding_scale", "scale_emb", None, NUMBER),
        Scales(),
        Only("attention_bias", None, (False,), "a bias in latent attention"),
    ),
    defaults={"interleaved": False, "head_size": 32, "key_size": 64, "latent": 256, "query_latent": 768}
    | {"value_size": lambda known: known["width"] // known["heads"], "embedding_scale": 12.0}
    | {"eps": 1e-5, "context": 32768, "tied": True, "mlp_bias": False},
    gguf_fixed={"interleaved": False, "embedding_scale": 12.0},
    ignored_gguf=rotary.LONG_FACTORS,
    instead=None,
    nulls={"value_size": lambda known: known["width"] // known["heads"]},
    forget=("score", "choice_bias", "group_of_two"),
    sparse=False,
    harmless=("num_nextn_predict_layers", "num_mtp_layers", *deepseek_v3.FAMILY.harmless, "pretraining_tp"),
)
