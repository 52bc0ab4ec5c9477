"""gpt-oss (2508.10925): sinks, every other layer local, biases everywhere, clamped SwiGLU experts.

Their weights are the softmax of the chosen ones' scores, which is all experts' with a sum of 1.
"""

from cutaway.weights import common
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Field, Only
from cutaway.weights.rules import Rule, beside, chain, each, same, stack, transpose

EXPERTS = "model.layers.{n}.mlp.experts"
OURS = "blocks.{n}.mlp.experts.{e}"

GATE_UP = (f"{OURS}.gate.weight", f"{OURS}.up.weight")
HF = (
    *common.HF_DECODER,
    *common.pairs(("model.layers.{n}.mlp.router", "blocks.{n}.mlp.router")),
    Rule("model.layers.{n}.self_attn.sinks", "blocks.{n}.attention.sinks", same),
    Rule(f"{EXPERTS}.gate_up_proj_bias", (f"{OURS}.gate.bias", f"{OURS}.up.bias"), each(beside(), 2)),
    Rule(f"{EXPERTS}.down_proj_bias", f"{OURS}.down.bias", stack),
)

FAMILY = llama.FAMILY.but(
    "gpt_oss",
    "GptOssForCausalLM",
    hf=(
        *HF,
        Rule(f"{EXPERTS}.gate_up_proj", GATE_UP, each(chain(transpose, beside()), 2)),
        Rule(f"{EXPERTS}.down_proj", f"{OURS}.down.weight", each(transpose)),
    ),
    hf_mxfp4=(  # blocks are of rows, so these matrices are not transposed
        *HF,
        Rule(f"{EXPERTS}.gate_up_proj", GATE_UP, each(beside(), 2)),
        Rule(f"{EXPERTS}.down_proj", f"{OURS}.down.weight", stack),
    ),
    gguf=(),
    rows=(
        *(row for row in common.turning(common.SIZES, required=True) if row != common.ACTIVATION_ROW),
        *common.experts(
            "num_local_experts", ("intermediate_size", "expert_feed_forward_length"), "num_experts"
        ),
        *common.biases("attention_bias"),
        common.LayerTypes(pattern=2, key=None),
        Field("limit", "swiglu_limit", None, NUMBER),
        Only("hidden_act", None, ("silu",), "another activation"),
        Only("swiglu_alpha", None, (1.702,), "another alpha of the activation"),
    ),
    defaults={"kv_heads": 8, "head_size": 64, "context": 131072, "eps": 1e-5, "rope_base": 150000.0}
    | {"experts": 128, "top_k": 4, "bias": True, "out_bias": True, "window": 128, "limit": 7.0},
    forget=("kv_heads",),
    fixed={"activation": "gelu_sigmoid", "normalised": True, "sinks": True}
    | {"router_bias": True, "expert_bias": True},
    sparse=True,
)
