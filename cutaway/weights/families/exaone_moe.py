"""K-EXAONE (2601.01739): EXAONE 4's attention behind a norm, and DeepSeek-V3's mixture of experts."""

from cutaway.weights import naming, rows
from cutaway.weights.families import exaone4, llama
from cutaway.weights.family import FLAG, NUMBER, Field

FAMILY = llama.FAMILY.but(
    "exaone_moe",
    "ExaoneMoeForCausalLM",
    hf=(
        *naming.HF_DECODER,
        *naming.HF_QK_NORM,
        *naming.renamed(naming.HF_DEEPSEEK_EXPERTS, ("gate.e_score", "e_score")),
    ),
    gguf=(),
    rows=(
        *rows.SIZES,
        *rows.DENSE[:1],
        *rows.experts("num_experts", rows.EXPERT_HIDDEN)[:3],
        *rows.GROUPS[:2],
        Field("normalised", "norm_topk_prob", None, FLAG),
        Field("routed_scale", "routed_scaling_factor", None, NUMBER),
        rows.SharedExperts("num_shared_experts"),
        rows.MLPTypes("first_k_dense_replace"),
        exaone4.LayerTypes(pattern=4, key=None),
    ),
    defaults={"kv_heads": 32, "eps": 1e-5, "window": 4096, "experts": 64, "top_k": 8, "expert_hidden": 1024}
    | {"shared": 1, "normalised": True, "routed_scale": 2.5, "groups": 1, "top_groups": 1},
    forget=("kv_heads",),
    fixed={"qk_norm": True, "nope": exaone4.nope, "bias": False, "out_bias": False, **rows.SIGMOID},
    sparse=True,
    harmless=("num_nextn_predict_layers", "num_mtp_layers"),
    ignored_hf=("model.layers.{layers}.*", "mtp.*"),
)
