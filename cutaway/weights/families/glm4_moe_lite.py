"""GLM-4.7-Flash (2026): DeepSeek-V3's block; a list says which layers are dense."""

from cutaway.weights import rows
from cutaway.weights.families import deepseek_v3
from cutaway.weights.family import Entries, Family, Row, Settings
from cutaway.weights.fields import Fields


class DenseLayers(Row):
    """A word for each layer; the first is dense where there is no list."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return rows.FirstDense().read(fields, known, own)
        kinds = fields.each_layer("mlp_layer_types", known["layers"], ("dense", "sparse"))
        return {
            "dense": tuple(
                kind == "dense" for kind in kinds or ["dense"] + ["sparse"] * (known["layers"] - 1)
            )
        }

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return rows.FirstDense().write(known, gguf)
        return {"mlp_layer_types": ["dense" if each else "sparse" for each in known["dense"]]}


FAMILY = deepseek_v3.FAMILY.but(
    "glm4_moe_lite",
    "Glm4MoeLiteForCausalLM",
    architecture="deepseek2",
    rows=tuple(DenseLayers() if isinstance(row, rows.FirstDense) else row for row in deepseek_v3.FAMILY.rows),
    defaults={"context": 202752, "eps": 1e-5, "key_size": 192, "value_size": 256, "query_latent": 768}
    | {"routed_scale": 1.8, "experts": 64, "top_k": 4, "expert_hidden": 1536, "groups": 1, "top_groups": 1},
)
