"""Sarvam-105B (2026): DeepSeek-V3's block, with keys of its own."""

from cutaway.weights import rows
from cutaway.weights.families import deepseek_v3
from cutaway.weights.family import Family, Field, Settings
from cutaway.weights.fields import Fields


class Rope(deepseek_v3.Rope):
    """The original config has a word of its own for YaRN."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        older = fields.get("rope_scaling")
        if not isinstance(older, dict) or "deepseek_yarn" not in (older.get("type"), older.get("rope_type")):
            return super().read(fields, known, own)
        plain = {key: value for key, value in older.items() if key != "type"} | {"rope_type": "yarn"}
        renamed = Fields({**fields.data, "rope_scaling": plain}, fields.where)
        found = super().read(renamed, known, own)
        fields.used |= renamed.used
        return found


FAMILY = deepseek_v3.FAMILY.but(
    "sarvam_mla",
    "SarvamMLAForCausalLM",
    architecture="deepseek2",
    rows=rows.replaced(
        deepseek_v3.FAMILY.rows,
        Field("experts", "num_experts", "expert_count", rows.TOP_K, alias="n_routed_experts"),
        rows.SharedExperts("num_shared_experts", "n_shared_experts"),
        rows.FirstDense(),
        Rope(),
    ),
    defaults={"query_latent": None, "experts": 128, "groups": 1, "top_groups": 1},
    instead=None,
    harmless=(*deepseek_v3.FAMILY.harmless, "q_head_dim"),
)
