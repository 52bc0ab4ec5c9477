"""Solar Open (Upstage, 2025): GLM-4.5's block, sparse in every layer, whole heads rotated, none normed."""

from cutaway.weights import naming, rows
from cutaway.weights.families import glm4_moe
from cutaway.weights.family import FLAG, NUMBER, Field, Present

FAMILY = glm4_moe.FAMILY.but(
    "solar_open",
    "SolarOpenForCausalLM",
    hf=(*naming.HF_DECODER, *naming.HF_DEEPSEEK_EXPERTS),
    gguf=(),
    rows=(
        *rows.SIZES,
        *rows.experts("n_routed_experts", rows.EXPERT_HIDDEN, "num_local_experts")[:3],
        *rows.GROUPS[:2],
        Field("normalised", "norm_topk_prob", None, FLAG),
        Field("routed_scale", "routed_scaling_factor", None, NUMBER),
        rows.SharedExperts(),
        Present("bias", "attention_bias", None),
    ),
    defaults={"head_size": 128, "rope_base": 1e6, "expert_hidden": 1280},
    harmless=(
        "num_nextn_predict_layers",
        "num_mtp_layers",
        "intermediate_size",
        "first_k_dense_replace",
        "use_qk_norm",
    ),
)
