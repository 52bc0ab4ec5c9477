"""Sarvam-30B (2026): GLM-4.5's block under other names, with whole heads rotated."""

from cutaway.weights import mtp, naming, rows
from cutaway.weights.families import glm4_moe
from cutaway.weights.family import FLAG, NUMBER, Field, Present
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import split

LAYER = "model.layers.{n}"
NAMES = (
    ("embed_tokens", "word_embeddings"),
    ("self_attn.o_proj", "attention.dense"),
    ("self_attn.q_norm", "attention.query_layernorm"),
    ("self_attn.k_norm", "attention.key_layernorm"),
    ("gate.e_score_correction_bias", "gate.expert_bias"),
)

FAMILY = glm4_moe.FAMILY.but(
    "sarvam_moe",
    "SarvamMoEForCausalLM",
    modules=(
        *((own, theirs) for theirs, own in NAMES),
        *(rule for rule in naming.HF_DECODER if rule.theirs.split(".")[-2] in ("q_proj", "k_proj", "v_proj")),
    ),
    hf=mtp.after(
        (
            *naming.renamed(glm4_moe.PLAIN, *NAMES, without=("q_proj", "k_proj", "v_proj")),
            *(
                Rule(f"{LAYER}.attention.query_key_value.{part}", naming.query_key_value(part), split)
                for part in ("weight", "bias")
            ),
        )
    ),
    gguf=(),
    rows=(
        *rows.turning(rows.SIZES, part=1.0),
        *rows.DENSE[:1],
        Field("experts", "num_experts", None, rows.TOP_K, alias="n_routed_experts"),
        *rows.experts("", rows.EXPERT_HIDDEN)[1:3],
        *rows.GROUPS[:2],
        Field("normalised", "norm_topk_prob", None, FLAG),
        Field("routed_scale", "routed_scaling_factor", None, NUMBER),
        rows.SharedExperts("num_shared_experts", "n_shared_experts"),
        rows.FirstDense(),
        mtp.Heads("num_nextn_predict_layers", "num_mtp_layers"),
        Present("bias", "use_qkv_bias", None, alias="attention_bias"),
        Present("qk_norm", "use_qk_norm", None),
    ),
    defaults={"kv_heads": 4, "head_size": 64, "eps": 1e-6, "rope_base": 8e6, "qk_norm": True}
    | {"top_k": 6, "expert_hidden": 1024, "routed_scale": 2.5},
)
