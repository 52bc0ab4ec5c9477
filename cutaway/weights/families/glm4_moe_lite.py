"""GLM-4.7-Flash (2026): DeepSeek-V3's block; a list says which layers are dense."""

from cutaway.weights import rows
from cutaway.weights.families import deepseek_v3

FAMILY = deepseek_v3.FAMILY.but(
    "glm4_moe_lite",
    "Glm4MoeLiteForCausalLM",
    architecture="deepseek2",
    rows=rows.replaced(deepseek_v3.FAMILY.rows, rows.MLPTypes()),
    defaults={"context": 202752, "eps": 1e-5, "key_size": 192, "value_size": 256, "query_latent": 768}
    | {"routed_scale": 1.8, "experts": 64, "top_k": 4, "expert_hidden": 1536, "groups": 1, "top_groups": 1},
)
