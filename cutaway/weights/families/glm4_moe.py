"""GLM-4.5 to 4.7 (2508.06471): half of each head rotated, and DeepSeek-V3's mixture of experts.

The layer after the last is a head that predicts one token more.
"""

from cutaway.weights import mtp, naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import FLAG, NUMBER, Field, Present

PLAIN = (*naming.HF_DECODER, *naming.HF_QK_NORM, *naming.HF_DEEPSEEK_EXPERTS)
FAMILY = llama.FAMILY.but(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    hf=mtp.after(PLAIN),
    gguf=mtp.in_gguf(
        (
            *naming.renamed(naming.GGUF_PLAIN, ("ffn_norm", "post_attention_norm")),
            *naming.pairs(*naming.GGUF_QUERY_KEY, naming.GGUF_VALUE, parts=("bias",)),
            *naming.GGUF_QK_NORM,
            *naming.GGUF_DEEPSEEK_EXPERTS,
        )
    ),
    rows=(
        *rows.turning(rows.SIZES, part=0.5),
        *rows.DENSE[:1],
        *rows.experts("n_routed_experts", rows.EXPERT_HIDDEN, "num_local_experts")[:3],
        rows.SigmoidScores(),
        *rows.GROUPS[:2],
        rows.NO_GROUPS,
        Field("normalised", "norm_topk_prob", "expert_weights_norm", FLAG, missing=True),
        Field("routed_scale", "routed_scaling_factor", "expert_weights_scale", NUMBER, missing=1.0),
        rows.SharedExperts(),
        rows.FirstDense(),
        mtp.Heads("num_nextn_predict_layers", "num_mtp_layers"),
        Present("bias", "attention_bias", "blk.0.attn_q.bias"),
        Present("qk_norm", "use_qk_norm", "blk.0.attn_q_norm.weight"),
    ),
    defaults={"kv_heads": 8, "context": 131072, "eps": 1e-5, "qk_norm": False, "shared": 1}
    | {"experts": 128, "top_k": 8, "expert_hidden": 1408, "normalised": True}
    | {"groups": 1, "top_groups": 1, "routed_scale": 1.0},
    forget=("kv_heads",),
    fixed={"out_bias": False, **rows.SIGMOID},
    gguf_fixed={"groups": 1, "top_groups": 1},
    sparse=True,
    ignored_hf=("model.layers.{layers}.*", "model.rotary_emb.inv_freq"),
)
