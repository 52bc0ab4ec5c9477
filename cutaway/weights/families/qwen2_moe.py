"""Qwen 2 MoE (2407.10671): Qwen 2's block with many small experts and one shared expert behind a gate.

The experts' weights are their probabilities among all experts; they do not sum to 1.
"""

from cutaway.weights import naming, rows
from cutaway.weights.families import qwen2
from cutaway.weights.family import FLAG, Field, Only, Present

EXPERTS = {"experts": 60, "top_k": 4, "expert_hidden": 1408, "shared": 5632, "normalised": False}
ROWS = (
    Field("hidden", "intermediate_size", "feed_forward_length", missing=None, each_layer=True),
    *rows.experts("num_experts", rows.EXPERT_HIDDEN, "num_local_experts"),
    Field("normalised", "norm_topk_prob", None, FLAG),
    rows.SparseLayers(),
    rows.NoWindows(),
)

FAMILY = qwen2.FAMILY.but(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    hf=(
        *naming.HF_DECODER,
        *naming.HF_EXPERTS,
        *naming.weights(
            ("model.layers.{n}.mlp.shared_expert.gate_proj", "blocks.{n}.mlp.shared.gate"),
            ("model.layers.{n}.mlp.shared_expert.up_proj", "blocks.{n}.mlp.shared.up"),
            ("model.layers.{n}.mlp.shared_expert.down_proj", "blocks.{n}.mlp.shared.down"),
            ("model.layers.{n}.mlp.shared_expert_gate", "blocks.{n}.mlp.shared_gate"),
        ),
    ),
    gguf=(*qwen2.FAMILY.gguf, *naming.GGUF_EXPERTS, *naming.GGUF_SHARED_EXPERT),
    rows=(
        *rows.SIZES,
        *ROWS,
        Field("shared", "shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        Present("bias", "qkv_bias", "blk.0.attn_q.bias"),
        Only(None, "expert_weights_norm", (False,), "weighing experts otherwise"),
    ),
    defaults={"kv_heads": 16, "bias": True} | EXPERTS,
    forget=("kv_heads", "bias"),
    fixed={"out_bias": False, "shared_gate": True},
    gguf_fixed={"normalised": False, "tied": False, "bias": True},
    sparse=True,
)
