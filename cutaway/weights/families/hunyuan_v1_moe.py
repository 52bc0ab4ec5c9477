"""Hunyuan-A13B (2025): Hunyuan's dense block with a mixture of experts and one that all tokens pass.

Its configs have lists of one number for each layer; all must be equal.
"""

from typing import Any

from cutaway.weights import naming, rows
from cutaway.weights.families import hunyuan_v1_dense
from cutaway.weights.family import Family, Field, FolderRow, Kind, Only, Row, Settings
from cutaway.weights.fields import COUNT, Fields


def repeated(fields: Fields, key: str) -> Any:
    """A whole number, or a list that repeats one."""
    value = fields.get(key)
    if not isinstance(value, list) or not value or value != value[:1] * len(value):
        return fields.integer(key, high=COUNT)
    return Fields({key: value[0]}, fields.where).integer(key, high=COUNT)


class Ignored(FolderRow):
    """Keys of the original configs that transformers does not read: they must say what it computes."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        for key, computed in (("moe_intermediate_size", known["expert_hidden"]), ("num_shared_expert", 1)):
            if fields.get(key) is not None and repeated(fields, key) != computed:
                raise fields.refusal(key, f"is not {computed}: other sizes of experts are not supported")
        return {}


class SharedExpert(Row):
    """One of the width of the others."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {"shared": fields.integer("expert_shared_feed_forward_length")}
        return {"shared": known["expert_hidden"]}

    def write(self, known: Settings, gguf: bool) -> dict[str, Any]:
        return {"expert_shared_feed_forward_length": known["shared"]} if gguf else {}


ALIASES = ("hunyuan-moe",)

MOE = "model.layers.{n}.mlp"

FAMILY = hunyuan_v1_dense.FAMILY.but(
    "hunyuan_v1_moe",
    "HunYuanMoEV1ForCausalLM",
    hf=(
        *hunyuan_v1_dense.FAMILY.hf,
        *naming.renamed(naming.HF_EXPERTS, ("mlp.gate.", "mlp.gate.wg.")),
        *naming.weights(
            *(
                (f"{MOE}.shared_mlp.{name}_proj", f"blocks.{{n}}.mlp.shared.{name}")
                for name in ("gate", "up", "down")
            )
        ),
    ),
    gguf=(*hunyuan_v1_dense.FAMILY.gguf, *naming.GGUF_EXPERTS, *naming.GGUF_SHARED_EXPERT[1:]),
    architecture="hunyuan-moe",
    rows=(
        *rows.replaced(rows.SIZES, hunyuan_v1_dense.Rope()),
        Field("experts", "num_experts", "expert_count", Kind(repeated), alias="num_local_experts"),
        Field("top_k", "moe_topk", "expert_used_count", Kind(repeated), alias="num_experts_per_tok"),
        Field("expert_hidden", "intermediate_size", "expert_feed_forward_length", each_layer=True),
        Field("hidden", None, "feed_forward_length", missing=None),
        *rows.EXPERTS_IN_GGUF,
        SharedExpert(),
        Ignored(),
        *rows.biases("attention_bias"),
        Only("use_cla", None, (False,), "attention to keys of other layers"),
        Only("use_qk_norm", None, (True,), "queries and keys that are not normed"),
        Only("use_mixed_mlp_moe", None, (True,), "a model without a shared expert"),
        Only("mlp_bias", None, (False,), "biases of MLPs"),
        Only("moe_layer_num_skipped", None, (0,), "dense layers"),
    ),
    defaults={"experts": 1, "top_k": 1},
    fixed={"normalised": True},
    sparse=True,
    harmless=(*hunyuan_v1_dense.FAMILY.harmless, "cla_share_factor", "moe_*drop*", "capacity_factor"),
)
