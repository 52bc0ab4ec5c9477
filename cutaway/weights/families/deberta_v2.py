"""DeBERTa-v2 and v3 (2006.03654, 2111.09543): near distances by themselves, far ones by their logarithm.

Version 3 projects distances by the text's own matrices. The larger models of version 2 have a convolution
beside the first layer.
"""

from typing import Any

from cutaway.model.config import Convolution
from cutaway.weights import naming, rows
from cutaway.weights.families import bert, deberta
from cutaway.weights.family import Entries, Family, Only, Row, Settings, shared
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

ALIASES = ("deberta-v2",)
SELF, OURS = "deberta.encoder.layer.{n}.attention.self", "blocks.{n}.attention"
ACTIVATIONS = {"tanh": "tanh", "gelu": "gelu", "relu": "relu"}


class Terms(deberta.Terms):
    """The same with buckets, a norm and shared projections."""

    def without(self, fields: Fields) -> Settings:
        return {"mixer": None, "one_relative": False}

    def distances(self, fields: Fields, known: Settings) -> tuple[int | None, int]:
        most = super().distances(fields, known)[1]
        fields.stated("position_buckets")
        buckets = fields.integer("position_buckets", -1, low=-1)
        return (most, buckets) if buckets > 0 else (None, most)

    def norm_eps(self, fields: Fields, known: Settings) -> float | None:
        fields.stated("norm_rel_ebd")
        words = [one.strip() for one in fields.text("norm_rel_ebd", "none").lower().split("|")]
        if not set(words) <= {"none", "layer_norm"}:
            raise fields.refusal("norm_rel_ebd", "should be none or layer_norm")
        return known["eps"] if "layer_norm" in words else None

    def projections(self, fields: Fields) -> dict[str, Any]:
        return {"shared_projections": fields.flag("share_att_key", False)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries = super().write(known, gguf)
        if not entries["relative_attention"]:
            return entries
        table, mixer = known["mixer"].relative, known["mixer"]
        entries |= {"share_att_key": mixer.shared_projections}
        entries |= {} if table.norm_eps is None else {"norm_rel_ebd": "layer_norm"}
        return entries | ({"position_buckets": table.span} if table.farthest else {})


class HeadSize(Row):
    """The size of a head; a config may state it only if it equals width / heads."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        key = "attention_head_size"
        if fields.stated(key) and (size := fields.integer(key)) != shared(known):
            raise fields.refusal(
                key, f"is {size}: another size of heads than {shared(known)} is not supported"
            )
        return {}


class Beside(Row):
    """The convolution beside the first block, if the model has one."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        kernel = fields.integer("conv_kernel_size", 0, low=0)
        for key in ("conv_kernel_size", *(("conv_act",) if kernel else ())):
            fields.stated(key)  # it may be left out, but not null
        activation = fields.choice("conv_act", ACTIVATIONS, "tanh") if kernel else None
        fields.get("conv_act")
        if kernel and kernel % 2 == 0:
            raise fields.refusal("conv_kernel_size", f"is {kernel}: it must be odd, to see both sides alike")
        return {"convolution": Convolution(kernel // 2, activation) if activation else None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        own = known["convolution"]
        return {"conv_kernel_size": own.kernel, "conv_act": own.activation} if own else {}


FAMILY = deberta.FAMILY.but(
    "deberta_v2",
    "DebertaV2Model",
    hf_type="deberta-v2",
    hf=(
        *naming.renamed(
            bert.HF,
            ("bert.", "deberta."),
            ("self.query", "self.query_proj"),
            ("self.key", "self.key_proj"),
            ("self.value", "self.value_proj"),
        ),
        *naming.pairs(
            (f"{SELF}.pos_key_proj", f"{OURS}.distance_key"),
            (f"{SELF}.pos_query_proj", f"{OURS}.distance_query"),
            ("deberta.encoder.LayerNorm", f"{deberta.TABLE}.norm"),
            ("deberta.encoder.conv.conv", "convolution.conv"),
            ("deberta.encoder.conv.LayerNorm", "convolution.norm"),
        ),
        Rule("deberta.encoder.rel_embeddings.weight", f"{deberta.TABLE}.weight", same),
    ),
    rows=(
        *rows.replaced(deberta.FAMILY.rows, without=("mixer",)),
        HeadSize(),
        Terms(),
        Beside(),
        Only("conv_groups", None, (1,), "a convolution in groups"),
    ),
    defaults={"vocab": 128100, "width": 1536, "hidden": 6144, "layers": 24, "heads": 24},
    harmless=(*bert.FAMILY.harmless, "pooler_*", "legacy", "padding_idx"),
)
