"""Qwen 3.5 MoE (2026), text: Qwen 3.5 with Qwen 2's mixture of experts."""

from cutaway.weights import mtp, naming, rows
from cutaway.weights.families import qwen2_moe, qwen3_5, qwen3_next
from cutaway.weights.family import Field

ALIASES = ("qwen3_5_moe_text", "qwen35moe")

FAMILY = qwen3_5.FAMILY.but(
    "qwen3_5_moe",
    "Qwen3_5MoeForCausalLM",
    hf_type="qwen3_5_moe_text",
    hf=qwen3_next.with_heads(
        (*qwen3_5.HF, *(rule for rule in qwen2_moe.FAMILY.hf if rule not in naming.HF_DECODER))
    ),
    gguf=mtp.in_gguf((*qwen3_5.GGUF, *naming.GGUF_EXPERTS, *naming.GGUF_SHARED_EXPERT)),
    architecture="qwen35moe",
    rows=(
        *rows.replaced(rows.SIZES, qwen3_5.Rope(part=0.25)),
        *rows.experts("num_experts", rows.EXPERT_HIDDEN, "num_local_experts"),
        Field("shared", "shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        *qwen3_5.HEADS,
        *qwen3_5.DELTA,
    ),
    defaults={"kv_heads": 2, "top_k": 8, "experts": 256},
    fixed={"normalised": True},
    harmless=(*qwen3_5.FAMILY.harmless, "intermediate_size"),
    sparse=True,
)
