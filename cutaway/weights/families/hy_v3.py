"""Hunyuan 3 (2026): normed queries and keys, sigmoid-scored experts, one of which all tokens pass."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Field, Only
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

ALIASES = ("hy_v3",)

FAMILY = llama.FAMILY.but(
    "hy_v3",
    "HYV3ForCausalLM",
    modules=((".mlp.router.gate.", ".mlp.gate."), (".mlp.shared_mlp.", ".mlp.shared_experts.")),
    hf=(
        *naming.HF_DECODER,
        *naming.HF_QK_NORM,
        *naming.renamed(
            naming.HF_DEEPSEEK_EXPERTS,
            ("mlp.gate.e_score_correction_bias", "mlp.expert_bias"),
            ("mlp.gate.", "mlp.router.gate."),
            ("shared_experts", "shared_mlp"),
        ),
    ),
    gguf=(
        *naming.GGUF_PLAIN,
        *naming.pairs(*naming.GGUF_QUERY_KEY, naming.GGUF_VALUE, parts=("bias",)),
        *naming.GGUF_QK_NORM,
        *naming.GGUF_EXPERTS,
        Rule("blk.{n}.exp_probs_b", "blocks.{n}.mlp.choice_bias", same),  # a name without an ending
        *naming.GGUF_SHARED_EXPERT[1:],
    ),
    rows=(
        *rows.SIZES,
        *rows.DENSE[:1],
        *rows.experts("num_experts", rows.EXPERT_HIDDEN, "num_local_experts")[:3],
        rows.SigmoidScores(),
        rows.Normalised(),
        rows.NO_GROUPS,
        Field("routed_scale", "router_scaling_factor", "expert_weights_scale", NUMBER, missing=1.0),
        rows.SharedWidth("num_shared_experts", needed=True),
        rows.MLPTypes(),
        *rows.biases("attention_bias"),
        Only("mlp_bias", None, (False,), "biases of MLPs"),
        Only("qk_norm", None, (True,), "queries and keys that are not normed"),
    ),
    defaults={"kv_heads": 8, "head_size": 128, "context": 131072, "eps": 1e-5, "rope_base": 11158840.0}
    | {"experts": 192, "top_k": 8, "expert_hidden": 1536, "shared": 1, "routed_scale": 2.826},
    fixed={"qk_norm": True, "normalised": True, **rows.SIGMOID, "group_of_two": False},
    forget=("kv_heads", "head_size"),
    sparse=True,
    architecture="hy_v3",
    harmless=("enable_moe_fp32_combine", "num_nextn_predict_layers"),
    ignored_hf=("model.layers.{layers}.*",),
)
